"""The session type is inferred from each kind of factory, without an annotation."""

from __future__ import annotations

from functools import partial

from flask import Flask
from sqlalchemy import Engine
from sqlalchemy.orm import Session, sessionmaker
from typing_extensions import assert_type

from flask_sqlalchemy_session import (
    FlaskScopedSession,
    SessionFactory,
    flask_scoped_session,
)
from tests.types.usage import Shop, ShopSession, check


def make() -> ShopSession:
    return ShopSession()


def make_with_options(engine: Engine | None = None, *, fast: bool = True) -> Session:
    return Session(engine, autoflush=fast)


def make_bound(engine: Engine) -> ShopSession:
    return ShopSession(engine)


def test_a_sessionmaker(app: Flask, engine: Engine) -> None:
    session = FlaskScopedSession(sessionmaker(engine), name="other")
    session.init_app(app)
    check(assert_type(session, FlaskScopedSession[Session]), FlaskScopedSession)
    check(assert_type(session(), Session), Session)


def test_a_sessionmaker_of_a_subclass(app: Flask, engine: Engine) -> None:
    factory = sessionmaker(engine, class_=ShopSession)
    session = FlaskScopedSession(factory, app, name="other")
    check(assert_type(session, FlaskScopedSession[ShopSession]), FlaskScopedSession)
    check(assert_type(session(), ShopSession), ShopSession)


def test_the_session_class(app: Flask) -> None:
    session = FlaskScopedSession(Session, app, name="other")
    check(assert_type(session(), Session), Session)


def test_a_subclass(app: Flask) -> None:
    session = FlaskScopedSession(ShopSession, app, name="other")
    check(assert_type(session(), ShopSession), ShopSession)


def test_a_function(app: Flask) -> None:
    session = FlaskScopedSession(make, app, name="other")
    check(assert_type(session(), ShopSession), ShopSession)


def test_a_function_with_only_optional_parameters(app: Flask) -> None:
    session = FlaskScopedSession(make_with_options, app, name="other")
    check(assert_type(session(), Session), Session)


def test_a_function_that_takes_keywords(app: Flask) -> None:
    session = FlaskScopedSession(make_with_options, app, name="other")
    check(assert_type(session(fast=False), Session), Session)


def test_a_lambda(app: Flask, engine: Engine) -> None:
    session = FlaskScopedSession(lambda: ShopSession(engine), app, name="other")
    check(assert_type(session(), ShopSession), ShopSession)


def test_a_partial_of_a_function(app: Flask, engine: Engine) -> None:
    session = FlaskScopedSession(partial(make_bound, engine), app, name="other")
    check(assert_type(session(), ShopSession), ShopSession)


def test_a_partial_of_a_subclass(app: Flask, engine: Engine) -> None:
    session = FlaskScopedSession(partial(ShopSession, engine), app, name="other")
    check(assert_type(session(), ShopSession), ShopSession)


def test_a_bound_method(app: Flask, engine: Engine) -> None:
    session = FlaskScopedSession(Shop(engine).make, app, name="other")
    check(assert_type(session(), ShopSession), ShopSession)


def test_a_classmethod(app: Flask) -> None:
    session = FlaskScopedSession(Shop.make_unbound, app, name="other")
    check(assert_type(session(), ShopSession), ShopSession)


def test_a_staticmethod(app: Flask) -> None:
    session = FlaskScopedSession(Shop.make_static, app, name="other")
    check(assert_type(session(), ShopSession), ShopSession)


def test_a_callable_object(app: Flask, engine: Engine) -> None:
    session = FlaskScopedSession(Shop(engine), app, name="other")
    check(assert_type(session(), ShopSession), ShopSession)


def test_the_name_of_version_1(app: Flask) -> None:
    session = flask_scoped_session(ShopSession, app, name="other")
    check(assert_type(session, FlaskScopedSession[ShopSession]), FlaskScopedSession)
    check(assert_type(session(), ShopSession), ShopSession)


def test_a_session_factory_makes_what_its_parameter_says() -> None:
    shop: SessionFactory[ShopSession] = ShopSession
    check(assert_type(shop(), ShopSession), ShopSession)


def test_a_session_factory_without_a_parameter_makes_a_session() -> None:
    plain: SessionFactory = sessionmaker()
    check(assert_type(plain(), Session), Session)


def test_a_session_factory_of_a_subclass_is_one_of_sessions(app: Flask) -> None:
    def make_plain(factory: SessionFactory[Session]) -> FlaskScopedSession[Session]:
        return FlaskScopedSession(factory, app, name="other")

    shop: SessionFactory[ShopSession] = ShopSession
    session = make_plain(shop)
    check(assert_type(session(), Session), ShopSession)
