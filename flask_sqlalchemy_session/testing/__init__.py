"""Rollback isolation for an application's tests."""

from ._block import HasSyncEngine, Isolatable, Isolation, isolate
from ._errors import IsolationError

__all__ = ["HasSyncEngine", "Isolatable", "Isolation", "IsolationError", "isolate"]

for _public in (HasSyncEngine, Isolatable, Isolation, isolate):
    _public.__module__ = __name__
del _public
