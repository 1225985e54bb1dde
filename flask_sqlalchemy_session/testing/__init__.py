"""Rollback isolation for an application's tests."""

from ._block import Isolatable, Isolation, isolate
from ._errors import IsolationError

__all__ = ["Isolatable", "Isolation", "IsolationError", "isolate"]

for _public in (Isolatable, Isolation, isolate):
    _public.__module__ = __name__
del _public
