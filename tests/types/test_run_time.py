"""Promise 5 at run time: what annotations say can be looked up, and is so.

Inside a context and outside of one, for `isinstance` and for the tools that are
built on it.
"""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
from functools import partial
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING, Any, get_args, get_origin, get_type_hints
from unittest import mock

import pytest
from flask import Flask
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session, scoped_session, sessionmaker

import flask_sqlalchemy_session
from flask_sqlalchemy_session import (
    FlaskScopedSession,
    SessionFactory,
    asyncio as async_module,
    current_session,
    testing as testing_module,
)
from flask_sqlalchemy_session.asyncio import (
    AsyncSessionFactory,
    FlaskAsyncScopedSession,
    current_async_session,
)
from flask_sqlalchemy_session.testing import Isolatable
from tests.support import User

from . import annotated_shop
from .test_checkers import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Engine

PACKAGE = "flask_sqlalchemy_session"
MODULES = [flask_sqlalchemy_session, async_module, testing_module]


# Looking up


def public_functions(module: ModuleType) -> Iterator[tuple[str, FunctionType]]:
    """Yield what can be called of a module's names: its classes' members too."""
    for name in module.__all__:
        public = getattr(module, name)
        if isinstance(public, FunctionType):
            yield name, public
        elif isinstance(public, type):
            for owner in public.__mro__:
                if owner.__module__.startswith(PACKAGE):
                    yield from functions_of(owner)


def functions_of(class_: type) -> Iterator[tuple[str, FunctionType]]:
    for name, member in vars(class_).items():
        if name.startswith("_") and not name.endswith("__"):
            continue
        if isinstance(member, property):
            found = [member.fget, member.fset, member.fdel]
        else:
            found = [getattr(member, "__func__", member)]
        for function in found:
            # A protocol's `__init__` and `__subclasshook__` are Python's own.
            if isinstance(function, FunctionType) and function.__module__ != "typing":
                yield f"{class_.__qualname__}.{name}", function


FUNCTIONS = {
    f"{module.__name__}.{name}": function
    for module in MODULES
    for name, function in public_functions(module)
}
CLASSES = {
    f"{module.__name__}.{name}": class_
    for module in MODULES
    for name in module.__all__
    if isinstance(class_ := getattr(module, name), type)
}


def test_what_is_looked_up_is_there() -> None:
    names = {name.removeprefix(f"{PACKAGE}.") for name in FUNCTIONS}
    assert names >= {
        "FlaskScopedSession.__init__",
        "FlaskScopedSession.init_app",
        "ForwardingScopedSession.__exit__",
        "ForwardingScopedSession.twophase",
        "ContextScoped.proxy",
        "SessionFactory.__call__",
        "asyncio.FlaskAsyncScopedSession.remove",
        "asyncio.ForwardingAsyncScopedSession.run_sync",
        "asyncio.ForwardingAsyncScopedSession.sync_session",
        "asyncio.use_one_event_loop",
        "testing.HasSyncEngine.sync_engine",
        "testing.Isolatable.remove",
        "testing.Isolation.__call__",
        "testing.isolate",
    }


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_hints_of_a_function_can_be_looked_up(name: str) -> None:
    hints = get_type_hints(FUNCTIONS[name])
    assert "return" in hints
    assert not [hint for hint in hints.values() if isinstance(hint, str)]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_signature_of_a_function_can_be_evaluated(name: str) -> None:
    signature = inspect.signature(FUNCTIONS[name], eval_str=True)
    annotations = [each.annotation for each in signature.parameters.values()]
    assert not [
        each
        for each in [*annotations, signature.return_annotation]
        if isinstance(each, str)
    ]


@pytest.mark.parametrize("name", CLASSES)
def test_the_hints_of_a_class_can_be_looked_up(name: str) -> None:
    hints = get_type_hints(CLASSES[name])
    assert not [hint for hint in hints.values() if isinstance(hint, str)]


@pytest.mark.parametrize("name", CLASSES)
def test_the_signature_of_a_class_can_be_evaluated(name: str) -> None:
    signature = inspect.signature(CLASSES[name], eval_str=True)
    annotations = [each.annotation for each in signature.parameters.values()]
    assert not [each for each in annotations if isinstance(each, str)]


def test_an_object_s_factory_is_hinted_as_what_it_may_be() -> None:
    hint = get_type_hints(FlaskScopedSession)
    assert get_origin(hint["session_factory"]) is SessionFactory
    async_hint = get_type_hints(FlaskAsyncScopedSession)
    assert get_origin(async_hint["session_factory"]) is AsyncSessionFactory


def test_a_parameter_is_hinted_with_the_application_s_class() -> None:
    for class_ in (FlaskScopedSession, FlaskAsyncScopedSession):
        hint = get_type_hints(class_.__init__)["app"]
        assert get_args(hint) == (Flask, type(None))


# Asking


class ShopSession(Session):
    pass


class AsyncShopSession(AsyncSession):
    pass


class Shop:
    def make(self) -> ShopSession:
        return ShopSession()

    def __call__(self) -> ShopSession:
        return ShopSession()


FACTORIES: dict[str, object] = {
    "a sessionmaker": sessionmaker(),
    "Session": Session,
    "a subclass": ShopSession,
    "a partial": partial(ShopSession),
    "a lambda": lambda: ShopSession(),  # noqa: PLW0108  # what is asked about
    "a method": Shop().make,
    "an object that is called": Shop(),
}
ASYNC_FACTORIES: dict[str, object] = {
    "an async_sessionmaker": async_sessionmaker(),
    "AsyncSession": AsyncSession,
    "a subclass": AsyncShopSession,
}
NO_FACTORIES: dict[str, object] = {
    "nothing": None,
    "a URL": "sqlite://",
    "a session": Session(),
    "a list": [ShopSession],
}


@pytest.mark.parametrize("factory", FACTORIES)
def test_a_factory_is_one(factory: str) -> None:
    assert isinstance(FACTORIES[factory], SessionFactory)


@pytest.mark.parametrize("factory", ASYNC_FACTORIES)
def test_an_async_factory_is_one(factory: str) -> None:
    assert isinstance(ASYNC_FACTORIES[factory], AsyncSessionFactory)


@pytest.mark.parametrize("other", NO_FACTORIES)
def test_what_is_not_called_is_no_factory(other: str) -> None:
    assert not isinstance(NO_FACTORIES[other], SessionFactory)
    assert not isinstance(NO_FACTORIES[other], AsyncSessionFactory)


def test_what_isolate_takes_can_be_told() -> None:
    assert isinstance(FlaskScopedSession(ShopSession), Isolatable)
    assert isinstance(FlaskAsyncScopedSession(AsyncShopSession), Isolatable)
    for other in (ShopSession(), scoped_session(sessionmaker()), None, ShopSession):
        assert not isinstance(other, Isolatable)


def test_a_proxy_is_no_factory_s_keeper_that_isolate_takes(app: Flask) -> None:
    session = FlaskScopedSession(ShopSession, app, name="shop")
    assert not isinstance(session.proxy, Isolatable)
    with app.app_context():
        assert not isinstance(session.proxy, Isolatable)


@pytest.fixture(params=["no context", "a bare application", "its application"])
def anywhere(app: Flask, request: pytest.FixtureRequest) -> Iterator[None]:
    """Where the question is asked. `app` is the one that is set up, if one is."""
    if request.param == "no context":
        yield
    else:
        here = app if request.param == "its application" else Flask("bare")
        with here.app_context():
            yield


@pytest.mark.usefixtures("anywhere")
def test_current_session_is_a_session_anywhere(app: Flask) -> None:
    assert isinstance(current_session, Session)
    assert isinstance(current_async_session, AsyncSession)
    FlaskScopedSession(ShopSession, app)
    assert isinstance(current_session, Session)


@pytest.mark.usefixtures("anywhere")
@pytest.mark.parametrize("factory", [sessionmaker(class_=ShopSession), ShopSession])
def test_a_proxy_is_of_the_session_s_class_anywhere(
    factory: SessionFactory[ShopSession], app: Flask
) -> None:
    session = FlaskScopedSession(factory, app, name="shop")
    assert isinstance(session.proxy, ShopSession)
    assert not session.registry.has()


@pytest.mark.usefixtures("anywhere")
@pytest.mark.parametrize(
    "factory", [async_sessionmaker(class_=AsyncShopSession), AsyncShopSession]
)
def test_an_async_proxy_is_of_the_session_s_class_anywhere(
    factory: AsyncSessionFactory[AsyncShopSession], app: Flask
) -> None:
    session = FlaskAsyncScopedSession(factory, app, name="shop")
    assert isinstance(session.proxy, AsyncShopSession)
    assert not session.registry.has()


def test_a_proxy_takes_its_class_from_the_session_where_the_factory_tells_none(
    app: Flask,
) -> None:
    proxy: object = FlaskScopedSession(Shop().make, app).proxy
    assert isinstance(proxy, Session)
    assert not isinstance(proxy, ShopSession)
    with app.app_context():
        assert isinstance(proxy, ShopSession)
        assert isinstance(current_session, ShopSession)


def test_current_session_is_a_session_where_the_factory_raises(app: Flask) -> None:
    def refuse() -> ShopSession:
        raise ConnectionError

    proxy: object = FlaskScopedSession(refuse, app).proxy
    with app.app_context():
        assert isinstance(current_session, Session)
        assert isinstance(proxy, Session)
        with pytest.raises(ConnectionError):
            current_session.is_active  # noqa: B018  # the use that is told


def test_current_session_is_of_its_application_s_class(app: Flask) -> None:
    FlaskScopedSession(sessionmaker(class_=ShopSession), app)
    assert not isinstance(current_session, ShopSession)
    with app.app_context():
        assert isinstance(current_session, ShopSession)
        assert type(current_session) is not ShopSession


# Tools that ask


@pytest.mark.usefixtures("anywhere")
@pytest.mark.parametrize(
    "name", ["current_session", "shop", "current_async_session", "async_shop"]
)
def test_a_patched_proxy_is_no_async_mock(name: str) -> None:
    with mock.patch(f"tests.types.annotated_shop.{name}") as patched:
        assert isinstance(patched, mock.MagicMock)
        assert not isinstance(patched, mock.AsyncMock)
        patched.get.return_value = None  # what an async mock would have awaited
        assert not inspect.isawaitable(patched.get())


def test_a_patched_proxy_returns_what_it_is_told_to() -> None:
    with mock.patch("tests.types.annotated_shop.shop") as patched:
        patched.count_users.return_value = 3
        assert annotated_shop.shop.count_users() == 3


@pytest.mark.parametrize(
    "factory",
    [async_sessionmaker(), AsyncSession, lambda: AsyncSession()],  # noqa: PLW0108  # it is what is tested
    ids=["sessionmaker", "class", "function"],
)
def test_a_factory_of_async_sessions_is_told_the_class_that_takes_it(
    factory: Any,  # a checker would tell as well
    app: Flask,
) -> None:
    session = FlaskScopedSession(factory, app)
    with app.app_context(), pytest.raises(TypeError, match="FlaskAsyncScopedSession"):
        session()
    with app.app_context(), pytest.raises(TypeError, match="FlaskAsyncScopedSession"):
        current_session.commit()


@pytest.fixture(params=["beartype", "typeguard"])
def held_to(request: pytest.FixtureRequest) -> tuple[ModuleType, type[Exception]]:
    """An application that a tool holds to its annotations, and the tool's error."""
    name = annotated_shop.__name__
    tool: Any = pytest.importorskip(request.param)
    sys.modules.pop(name)
    try:
        if request.param == "typeguard":
            with tool.install_import_hook(name):
                return importlib.import_module(name), tool.TypeCheckError
        # Its import hook stays, and holds for what is imported later.
        shop = importlib.import_module(name)
        for member, value in list(vars(shop).items()):
            if isinstance(value, FunctionType | type) and value.__module__ == name:
                setattr(shop, member, tool.beartype(value))
        return shop, importlib.import_module("beartype.roar").BeartypeCallHintViolation
    finally:
        sys.modules[name] = annotated_shop


def test_an_application_s_annotations_hold_without_a_context(
    held_to: tuple[ModuleType, type[Exception]],
) -> None:
    shop, _ = held_to
    shop.use_without_a_context()


def test_an_application_s_annotations_hold_in_a_context(
    held_to: tuple[ModuleType, type[Exception]], app: Flask, memory: Engine
) -> None:
    shop, _ = held_to
    shop.maker.configure(bind=memory)
    shop.session.init_app(app)
    shop.async_session.init_app(app)
    with app.app_context():
        shop.session.add(User(name="ann"))
        assert shop.use_in_a_context() == 1


WRONG: dict[str, Callable[[Any], object]] = {
    "take_session a scoped session": lambda shop: shop.session,
    "take_session an async session": lambda shop: shop.async_shop,
    "take_shop_session a plain session": lambda _: current_session,
    "take_shop_session a plain proxy": lambda _: FlaskScopedSession(Session).proxy,
    "take_async_session a sync session": lambda shop: shop.shop,
    "take_async_shop_session a plain session": lambda _: current_async_session,
    "Users a scoped session": lambda shop: shop.session,
    "set_up a session": lambda _: Session(),
    "set_up_async nothing": lambda _: None,
    "name_of a session": lambda shop: shop.shop,
    "get_proxy a session": lambda shop: shop.shop,
}


@pytest.mark.parametrize("case", WRONG)
def test_an_application_s_annotations_keep_out_the_rest(
    case: str, held_to: tuple[ModuleType, type[Exception]]
) -> None:
    shop, error = held_to
    wrong = WRONG[case](shop)
    with pytest.raises(error):
        getattr(shop, case.split(maxsplit=1)[0])(wrong)


HOOKED = """
import sys

import pytest
from typeguard import TypeCheckError, install_import_hook

install_import_hook("flask_sqlalchemy_session")

from sqlalchemy.orm import Session

from flask_sqlalchemy_session import FlaskScopedSession

with pytest.raises(TypeCheckError):
    FlaskScopedSession(Session, name=1)
sys.exit(pytest.main(sys.argv[1:]))
"""


@pytest.mark.checkers
def test_the_package_passes_its_own_annotations() -> None:
    """Under typeguard's import hook, in all that the usage files do."""
    pytest.importorskip("typeguard")
    usage = ROOT / "tests" / "types" / "usage" / "accepted"
    done = subprocess.run(  # noqa: S603  # our own words
        [
            *(sys.executable, "-c", HOOKED, str(usage)),
            *("-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--assert=plain"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


# pydantic


@pytest.fixture
def pydantic() -> ModuleType:
    module: ModuleType = pytest.importorskip("pydantic")
    return module


@pytest.mark.usefixtures("anywhere")
def test_a_pydantic_model_takes_the_proxies_anywhere(
    app: Flask, pydantic: ModuleType
) -> None:
    session = FlaskScopedSession(sessionmaker(class_=ShopSession), app)
    arbitrary = pydantic.ConfigDict(arbitrary_types_allowed=True)
    model = pydantic.create_model(
        "Service",
        __config__=arbitrary,
        session=Session,
        shop=ShopSession,
        scoped=FlaskScopedSession[ShopSession],
        factory=SessionFactory[ShopSession],
        isolatable=Isolatable,
        async_session=AsyncSession,
    )
    fields: dict[str, object] = {
        "session": current_session,
        "shop": session.proxy,
        "scoped": session,
        "factory": ShopSession,
        "isolatable": session,
        "async_session": current_async_session,
    }
    service = model(**fields)
    assert not session.registry.has()
    for name, value in fields.items():
        assert getattr(service, name) is value
        with pytest.raises(pydantic.ValidationError, match=name):
            model(**{**fields, name: User(name="ann")})
    with pytest.raises(pydantic.ValidationError, match="scoped"):
        model(**{**fields, "scoped": session.proxy})


@pytest.mark.usefixtures("anywhere")
def test_a_function_that_pydantic_validates_takes_the_proxies_anywhere(
    pydantic: ModuleType,
) -> None:
    session = FlaskScopedSession(sessionmaker(class_=ShopSession))

    def take(session: Session, shop: ShopSession) -> tuple[Session, ShopSession]:
        return session, shop

    arbitrary = pydantic.ConfigDict(arbitrary_types_allowed=True)
    validated = pydantic.validate_call(take, config=arbitrary)
    taken = validated(current_session, session.proxy)
    assert taken[0] is current_session
    assert taken[1] is session.proxy
    with pytest.raises(pydantic.ValidationError):
        validated(session, session.proxy)
