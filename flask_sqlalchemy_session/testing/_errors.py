"""The error that isolation raises."""

from __future__ import annotations


class IsolationError(RuntimeError):
    """Something that can't be done, or undone, inside ``isolate()``."""

    __module__ = "flask_sqlalchemy_session.testing"

    # Python's own errors tell no signature.
    def __init__(self, *args: object) -> None:
        super().__init__(*args)
