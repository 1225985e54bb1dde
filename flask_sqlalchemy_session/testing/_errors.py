"""The error that isolation raises."""

from __future__ import annotations


class IsolationError(RuntimeError):
    """Something that can't be done, or undone, inside ``isolate()``."""

    __module__ = "flask_sqlalchemy_session.testing"


def has_ended() -> IsolationError:
    return IsolationError(
        "This connection was opened inside an isolate() block that has ended. Open "
        "another. [block-ended]"
    )
