"""The types, proved: what is accepted, and what every checker must reject.

Each file here is both run by pytest and read by six checkers, as
`tests/types/test_checkers.py` has it.
A line `check(assert_type(x, T), T)` in `accepted` proves with one `T` what a checker
infers and what is there at run time. A line in `rejected` that ends in a comment
`# rejected: why` must be reported by every checker, and no other line by any; where
it raises as well, it stands in `pytest.raises`.

To add a case, write a test in the file of its topic. To mark a line that is longer
than a line may be, give its parts names on the lines before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from sqlalchemy import Engine, func, select
from sqlalchemy.orm import Session, scoped_session

from tests.support import User

if TYPE_CHECKING:
    from flask_sqlalchemy_session import FlaskScopedSession

T = TypeVar("T")


class ShopSession(Session):
    """What an application may make its own, with a method of its own."""

    def count_users(self) -> int:
        return self.scalars(select(func.count(User.id))).one()


def check(value: T, class_: type) -> T:
    """Fail unless a value is at run time what its checked type says.

    The type variable keeps checkers from expecting anything of the value.
    """
    assert isinstance(value, class_)
    return value


def takes_session(session: Session) -> Session:
    return session


def takes_shop_session(session: ShopSession) -> int:
    return session.count_users()


def takes_scoped(session: scoped_session[Session]) -> Session:
    return session()


def takes_shop_scoped(session: scoped_session[ShopSession]) -> int:
    return session().count_users()


def takes_plain(session: FlaskScopedSession) -> Session:
    return session()


class Shop:
    """Makes sessions in every way that a class can."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def make(self) -> ShopSession:
        return ShopSession(self.engine)

    @classmethod
    def make_unbound(cls) -> ShopSession:
        return ShopSession()

    @staticmethod
    def make_static() -> ShopSession:
        return ShopSession()

    def __call__(self) -> ShopSession:
        return ShopSession(self.engine)
