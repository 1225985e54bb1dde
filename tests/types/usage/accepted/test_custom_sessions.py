"""`Session` subclasses, with generic code around them."""

from __future__ import annotations

from typing import TypeVar

from flask import Flask
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session, sessionmaker
from typing_extensions import assert_type

from flask_sqlalchemy_session import FlaskScopedSession, SessionFactory
from tests.support import User
from tests.types.usage import ShopSession, check

S = TypeVar("S", bound=Session)


class AuditedSession(ShopSession):
    """A subclass of a subclass, with a constructor and state of its own."""

    def __init__(self, engine: Engine | None = None, *, auditor: str = "ann") -> None:
        super().__init__(engine)
        self.auditor = auditor

    def by_name(self, name: str) -> User | None:
        return self.scalars(select(User).filter_by(name=name)).one_or_none()


def set_up(app: Flask, factory: SessionFactory[S]) -> FlaskScopedSession[S]:
    """Stands for an application's own helper, for any session type."""
    return FlaskScopedSession(factory, app, name="other")


def in_use(session: FlaskScopedSession[S]) -> S:
    return session.proxy


def test_a_subclass_of_a_subclass(app: Flask, engine: Engine) -> None:
    session = set_up(app, lambda: AuditedSession(engine))
    check(assert_type(session, FlaskScopedSession[AuditedSession]), FlaskScopedSession)
    check(assert_type(session(), AuditedSession), AuditedSession)
    check(assert_type(session().auditor, str), str)
    check(assert_type(session.proxy.by_name("ann"), User | None), User)
    check(assert_type(in_use(session), AuditedSession), AuditedSession)
    check(assert_type(in_use(session).count_users(), int), int)


def test_a_sessionmaker_of_a_subclass(app: Flask, engine: Engine) -> None:
    factory = sessionmaker(engine, class_=ShopSession, expire_on_commit=False)
    session = set_up(app, factory)
    check(assert_type(session(), ShopSession), ShopSession)
    check(assert_type(in_use(session), ShopSession), ShopSession)


def test_a_class(app: Flask) -> None:
    session = set_up(app, AuditedSession)
    check(assert_type(in_use(session), AuditedSession), AuditedSession)


def test_a_parameter_says_what_can_not_be_inferred(app: Flask, engine: Engine) -> None:
    session = FlaskScopedSession[Session](
        sessionmaker(engine, class_=ShopSession), app, name="other"
    )
    check(assert_type(session(), Session), ShopSession)
