"""The error that isolation raises."""

from __future__ import annotations


class IsolationError(RuntimeError):
    """Something that can't be done, or undone, inside ``isolate()``."""

    __module__ = "flask_sqlalchemy_session.testing"
