"""What `init_app` does to an application, and what it leaves alone."""

from __future__ import annotations

import contextvars
import copy
import gc
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, cast
from unittest import mock
from weakref import ref

import pytest
from flask import Flask
from flask.ctx import AppContext
from sqlalchemy import text
from sqlalchemy.orm import Session, sessionmaker

from flask_sqlalchemy_session import FlaskScopedSession, current_session
from tests.scope.flask_versions import FLASK_3_2, before_flask_3_2
from tests.support import Held, OopsError, use

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Engine

EXTENSION = "sqlalchemy_session"


def refusing(name: str, error: type[BaseException]) -> Flask:
    class Refusing(Flask):
        def __setattr__(self, attribute: str, value: object) -> None:
            if attribute == name:
                raise error
            super().__setattr__(attribute, value)

    return Refusing("refusing")


@pytest.mark.parametrize("error", [OopsError, KeyboardInterrupt])
@pytest.mark.parametrize(
    "name",
    [
        "scoped_session",
        "do_teardown_appcontext",
        pytest.param(
            "__class__", marks=before_flask_3_2("an application keeps its class")
        ),
    ],
)
def test_an_application_that_refuses_an_attribute_is_left_as_it_was(
    name: str, error: type[BaseException], memory: Engine
) -> None:
    app = refusing(name, error)
    before, class_ = dict(vars(app)), type(app)
    extensions = dict(app.extensions)
    session = FlaskScopedSession(sessionmaker(memory))
    with pytest.raises(error):
        session.init_app(app)
    assert vars(app) == before
    assert type(app) is class_
    assert app.extensions == extensions
    with app.app_context(), pytest.raises(RuntimeError, match="no session named"):
        session()


def test_what_an_application_had_is_there_again_where_it_refuses_an_extension(
    app: Flask, memory: Engine
) -> None:
    app.extensions = cast("dict[str, Any]", MappingProxyType({}))
    app.do_teardown_appcontext = mine = app.do_teardown_appcontext  # type: ignore[method-assign]  # as an extension may
    vars(app)["scoped_session"] = "mine"
    with pytest.raises(TypeError):
        FlaskScopedSession(sessionmaker(memory), app)
    assert app.do_teardown_appcontext is mine
    assert vars(app)["scoped_session"] == "mine"


class WithoutRoom:
    """A mixin of an application's own, which adds nothing to its objects."""

    __slots__ = ()


class WithoutRoomContext(WithoutRoom, AppContext):
    pass


class Tenants(WithoutRoom, Flask):
    """An application of which each context has a tenant."""

    def app_context(self, tenant: str = "ours") -> AppContext:
        context = WithoutRoomContext(self)
        context.g.tenant = tenant
        return context


def test_what_an_application_class_makes_otherwise_stays_so(memory: Engine) -> None:
    app = Tenants("shop")
    session = FlaskScopedSession(sessionmaker(memory), app)
    held = Held(memory)
    app.add_url_rule("/", view_func=lambda: str(session.scalar(text("SELECT 1"))))
    with app.app_context("theirs") as context:
        assert context.g.tenant == "theirs"
        assert isinstance(context, WithoutRoomContext)
        session.execute(text("SELECT 1"))
        assert held.count == 1
    assert held.count == 0
    assert app.test_client().get("/").text == "1"
    assert held.count == 0


def test_an_application_that_refuses_an_extension_is_left_as_it_was(
    app: Flask, memory: Engine
) -> None:
    app.extensions = cast("dict[str, Any]", MappingProxyType({}))
    before = dict(vars(app))
    session = FlaskScopedSession(sessionmaker(memory))
    with pytest.raises(TypeError):
        session.init_app(app)
    assert vars(app) == before
    assert type(app) is Flask


def test_an_application_with_a_class_that_is_made_by_another_can_be_set_up(
    memory: Engine,
) -> None:
    class Meta(type):
        pass

    class Shop(Flask, metaclass=Meta):
        pass

    app = Shop("shop")
    session = FlaskScopedSession(sessionmaker(memory), app)
    assert isinstance(app, Shop)
    assert type(app).__name__ == "Shop"
    with app.app_context():
        use(session())
    assert Held(memory).count == 0


@pytest.fixture
def eager_switches() -> Iterator[None]:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("eager_switches")
@pytest.mark.parametrize("names", [("default", "reports"), ("default", "default")])
def test_threads_that_set_up_one_application_lose_no_name(
    names: tuple[str, str], memory: Engine
) -> None:
    factory = sessionmaker(memory)
    with ThreadPoolExecutor(2) as threads:
        for _ in range(200):
            app = Flask("shop")
            barrier = threading.Barrier(2)

            def set_up(
                name: str, app: Flask = app, barrier: threading.Barrier = barrier
            ) -> bool:
                session = FlaskScopedSession(factory, name=name)
                barrier.wait()
                try:
                    session.init_app(app)
                except RuntimeError:
                    return False
                return True

            accepted = list(threads.map(set_up, names))
            assert sum(accepted) == len(set(names))
            assert set(app.extensions[EXTENSION]) == set(names)
            with app.app_context():
                for session in app.extensions[EXTENSION].values():
                    use(session())
            assert Held(memory).count == 0


def test_the_last_reference_frees_an_application(
    memory: Engine, no_collector: None
) -> None:
    app = Flask("shop", static_folder=None)  # whose view would refer to it
    session = FlaskScopedSession(sessionmaker(memory), app)
    with app.app_context():
        use(session())
    alive = ref(app)
    del app
    assert alive() is None


def test_a_copied_application_releases_too(
    app: Flask, session: FlaskScopedSession[Session], held: Held, no_collector: None
) -> None:
    copied = copy.copy(app)
    for each in (copied, app):
        with each.app_context():
            use(session())
            assert held.count == 1
        assert held.count == 0
    with copied.test_request_context():
        use(session())
    assert held.count == 0


def test_a_copy_releases_a_session_that_only_a_hook_made(
    app: Flask, session: FlaskScopedSession[Session], held: Held, no_collector: None
) -> None:
    @app.teardown_appcontext
    def late(_: BaseException | None) -> None:
        use(session())

    copied = copy.copy(app)
    for each in (copied, app):
        with each.app_context():
            pass
        assert held.count == 0


@before_flask_3_2("a teardown is told its context")
def test_a_teardown_by_hand_ends_what_is_current_of_the_application_and_its_copies(
    app: Flask, session: FlaskScopedSession[Session], held: Held
) -> None:
    app.do_teardown_appcontext()  # where there is no context
    copied, other = copy.copy(app), Flask("other")
    FlaskScopedSession(sessionmaker(held.engine), other)
    with copied.app_context():
        use(session())
        copied.do_teardown_appcontext()
        assert held.count == 0
    with other.app_context():
        use(current_session)
        app.do_teardown_appcontext()
        assert held.count == 1
    assert held.count == 0


@before_flask_3_2("it refuses to pop a context that is not current")
def test_contexts_that_an_application_makes_in_a_way_of_its_own_are_watched(
    memory: Engine,
) -> None:
    class Shop(Flask):
        def app_context(self) -> AppContext:
            context = super().app_context()
            context.g.shop = self.name
            return context

    app, held = Shop("shop"), Held(memory)
    session = FlaskScopedSession(sessionmaker(memory), app)
    context = app.app_context()
    assert context.g.shop == "shop"
    contextvars.Context().run(context.push)
    with app.app_context():
        use(session())
        with pytest.raises((ValueError, LookupError)):
            context.pop()
        assert held.count == 1
    assert held.count == 0


@before_flask_3_2("it refuses to pop a context that is not current")
def test_a_context_of_a_copy_that_is_popped_elsewhere_runs_the_copys_hooks(
    app: Flask, session: FlaskScopedSession[Session]
) -> None:
    ended: list[str] = []
    copied = copy.copy(app)
    app.teardown_appcontext_funcs = [lambda _: ended.append("the original's")]
    copied.teardown_appcontext_funcs = [lambda _: ended.append("the copy's")]
    context = copied.app_context()
    contextvars.Context().run(context.push)
    with copied.app_context():
        session()
        with pytest.raises((ValueError, LookupError)):
            context.pop()
        assert ended == ["the copy's"]


class NoRoom:
    __slots__ = ("user",)


def test_a_g_without_room_is_told_what_it_lacks(memory: Engine) -> None:
    app = Flask("shop")
    app.app_ctx_globals_class = NoRoom  # type: ignore[assignment]  # that is the mistake
    session = FlaskScopedSession(sessionmaker(memory), app)
    with app.app_context():
        for use_it in (session, lambda: current_session.info):
            with pytest.raises(RuntimeError, match="Take away its '__slots__'"):
                use_it()


def test_a_copy_of_the_proxy_outside_a_context_says_what_to_do() -> None:
    for function in (copy.copy, copy.deepcopy):
        with pytest.raises(RuntimeError, match=r"with app\.app_context\(\):"):
            function(current_session)


@pytest.mark.parametrize("order", ["first", "last"])
def test_the_errors_of_a_hook_and_of_the_release_reach_the_caller(
    order: str, app: Flask, memory: Engine
) -> None:
    class Failing(Session):
        def close(self) -> None:
            super().close()
            raise OopsError("the release's")

    session = FlaskScopedSession(sessionmaker(memory, class_=Failing), app, name="own")
    if order == "last":
        app.teardown_appcontext(lambda _: None)

    @app.teardown_appcontext
    def fail(_: BaseException | None) -> None:
        raise OopsError("the hook's")

    def end() -> None:
        with app.app_context():
            use(session())

    with pytest.raises(BaseException) as raised:  # noqa: PT011  # of either sort
        end()
    assert told(raised.value) == {"the hook's", "the release's"}
    if FLASK_3_2 and sys.version_info >= (3, 11):
        assert isinstance(raised.value, BaseExceptionGroup)  # noqa: F821  # from 3.11 on
    else:
        assert isinstance(raised.value, OopsError)
    assert Held(memory).count == 0


def test_a_teardown_that_the_application_was_given_goes_on(
    app: Flask, memory: Engine
) -> None:
    called: list[object] = []
    app.do_teardown_appcontext = lambda *args, **_: called.append(args)  # type: ignore[method-assign]
    session = FlaskScopedSession(sessionmaker(memory), app)
    held = Held(memory)
    with app.app_context():
        use(session())
        assert not called
    assert len(called) == 1
    assert held.count == 0


@before_flask_3_2("it refuses to pop a context that is not current")
def test_a_teardown_that_an_extension_wraps_between_two_objects_ends_its_own_context(
    app: Flask, memory: Engine
) -> None:
    session = FlaskScopedSession(sessionmaker(memory), app)
    inner = app.do_teardown_appcontext
    wrapped = mock.Mock(side_effect=inner)
    app.do_teardown_appcontext = wrapped  # type: ignore[method-assign]  # as an extension may
    FlaskScopedSession(sessionmaker(memory), app, name="reports")
    other = app.app_context()
    contextvars.Context().run(other.push)
    with app.app_context():
        use(session())
        with suppress(ValueError, LookupError, AssertionError):
            other.pop()
        assert "mark" in session.info
        assert session().in_transaction()


def test_a_teardown_that_a_tracer_has_wrapped_is_called(
    app: Flask, memory: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[Flask] = []
    flasks = Flask.do_teardown_appcontext

    class Bound:
        """Has a `__func__` that leaves it out, as what `wrapt` binds for a tracer."""

        __func__ = flasks

        def __init__(self, app: Flask) -> None:
            self.__self__ = app

        def __call__(self, *args: Any, **kwargs: Any) -> None:
            called.append(self.__self__)
            flasks(self.__self__, *args, **kwargs)

    class Traced:
        def __get__(self, app: Flask | None, class_: type[Flask]) -> object:
            return self if app is None else Bound(app)

        def __call__(self, app: Flask, *args: Any, **kwargs: Any) -> None:
            pytest.fail("it is bound to an application")

    monkeypatch.setattr(Flask, "do_teardown_appcontext", Traced())
    session = FlaskScopedSession(sessionmaker(memory), app)
    with app.app_context():
        use(session())
    assert called == [app]
    assert Held(memory).count == 0


def test_a_teardown_that_the_class_is_given_is_bound_as_python_does_it(
    memory: Engine,
) -> None:
    called = mock.Mock()
    for patch in (called, staticmethod(called)):
        with mock.patch.object(Flask, "do_teardown_appcontext", patch):
            app = Flask("shop")
            session = FlaskScopedSession(sessionmaker(memory), app)
            with app.app_context():
                use(session())
        assert app not in called.call_args.args
        assert Held(memory).count == 0


def test_a_teardown_that_a_patch_calls_in_place_of_the_classs_is_called_once(
    app: Flask, session: FlaskScopedSession[Session], held: Held
) -> None:
    ended: list[object] = []
    app.teardown_appcontext(ended.append)
    ours = app.do_teardown_appcontext

    def spy(_: Flask, *args: Any, **kwargs: Any) -> None:
        ours(*args, **kwargs)

    with (
        mock.patch.object(type(app), "do_teardown_appcontext", spy),
        app.app_context(),
    ):
        use(session())
    assert ended == [None]
    assert held.count == 0


def test_an_application_that_lost_its_teardown_can_be_set_up_again(
    app: Flask, session: FlaskScopedSession[Session], held: Held
) -> None:
    vars(app).pop("do_teardown_appcontext")
    session.init_app(app)
    with app.app_context():
        use(session())
    assert held.count == 0


def test_an_application_whose_class_takes_arguments_can_be_set_up(
    memory: Engine,
) -> None:
    regions: list[str] = []

    class Service(Flask):
        def __init_subclass__(cls, *, region: str) -> None:
            regions.append(region)

    class Shop(Service, region="eu"):
        pass

    app = Shop("shop")
    session = FlaskScopedSession(sessionmaker(memory), app)
    with app.app_context():
        use(session())
    assert Held(memory).count == 0
    assert regions == ["eu"]


def told(error: BaseException | None) -> set[str]:
    """Return what an error says, with what it holds and what came before it."""
    if error is None:
        return set()
    errors = getattr(error, "exceptions", ())
    if not errors:
        return {str(error)} | told(error.__context__)
    return set().union(*map(told, errors))


def test_an_application_may_set_up_another_session_when_it_is_given_one(
    memory: Engine,
) -> None:
    factory = sessionmaker(memory)

    class Shop(Flask):
        def __setattr__(self, name: str, value: object) -> None:
            if name == "scoped_session":
                FlaskScopedSession(factory, self, name="reports")
            super().__setattr__(name, value)

    app = Shop("shop")
    session = FlaskScopedSession(factory, app)
    assert set(app.extensions[EXTENSION]) == {"default", "reports"}
    with app.app_context():
        for each in (session, app.extensions[EXTENSION]["reports"]):
            use(each())
    assert Held(memory).count == 0


def test_the_class_of_an_application_and_of_its_contexts_is_freed(
    memory: Engine,
) -> None:
    def make() -> list[ref[type]]:
        class Shop(Flask):
            def app_context(self) -> AppContext:
                return Context(self)

            def name_of_the_first(self) -> str:
                return app.name

        class Context(AppContext):
            pass

        app = Shop("shop")
        session = FlaskScopedSession(sessionmaker(memory), app)
        with app.app_context():
            use(session())
        return [ref(Shop), ref(Context)]

    made = make()
    gc.collect()
    assert [each() for each in made] == [None, None]
