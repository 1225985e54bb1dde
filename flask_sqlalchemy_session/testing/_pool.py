"""The pool that an engine has inside the block."""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from sqlalchemy import QueuePool, event

if TYPE_CHECKING:
    from collections.abc import Generator

    from sqlalchemy import Engine, Pool, PoolProxiedConnection
    from sqlalchemy.pool import ConnectionPoolEntry

    from ._modes import Mode
    from ._shared import SharedConnection

_CREATION = ("first_connect", "connect")
_USE = ("checkout", "checkin", "reset")
_FORWARDED = (*_USE, "invalidate", "soft_invalidate", "detach")


class _Nobody(tuple[()]):
    """No listeners. A pool that pings calls them without looking whether there are."""

    __slots__ = ()

    def __call__(self, *args: object) -> None:
        pass


class _Unheard:
    """The listeners of a pool, without those to what an application does with it."""

    def __init__(self, dispatch: Any) -> None:
        self._dispatch = dispatch

    def __getattr__(self, name: str) -> Any:
        return _Nobody() if name in _USE else getattr(self._dispatch, name)


class SharedPool(QueuePool):
    """Hands out stand-ins, also after `Engine.dispose`, where another pool was.

    That one's listeners hear of each stand-in what they would of a connection, and
    never of the connection behind them all.
    """

    mode: Mode | None = None
    """That of the engine's connections, once there was one."""

    def __init__(self, engine: Engine, shared: SharedConnection) -> None:
        self.replaced: Pool = engine.pool
        size = engine.pool.size() if isinstance(engine.pool, QueuePool) else 5

        def create(rec: ConnectionPoolEntry) -> Any:
            connection = shared.connect(self)
            # What listeners have kept of the connection when it was made.
            rec.info.update(self._info)
            return connection

        super().__init__(
            create, pool_size=size, max_overflow=-1, dialect=engine.dialect
        )
        self.engine = engine
        self._shared = shared
        self._info: dict[Any, Any] = {}
        for name in _FORWARDED:
            event.listen(self, name, partial(self._forward, name))
        self._own = {
            name: [*getattr(self.dispatch, name).listeners]
            for name in (*_CREATION, *_FORWARDED)
        }

    def _forward(self, name: str, *args: object) -> None:
        # Those of every pool are called already.
        for listener in [*getattr(self.replaced.dispatch, name).listeners]:
            listener(*args)

    def connect(self) -> PoolProxiedConnection:
        self._shared.check_use()
        return super().connect()

    def recreate(self) -> SharedPool:
        return self

    def is_beneath(self, pool: Pool) -> bool:
        """Tell whether a pool is this one, or of a block inside this one's."""
        while pool is not self and isinstance(pool, SharedPool):
            pool = pool.replaced
        return pool is self

    def connect_for_real(self) -> PoolProxiedConnection:
        """Connect to the database itself, which no listener but its maker's hears."""
        with self._unheard():
            pooled = self.replaced.connect()
        self._info.update(pooled.info)
        return pooled

    def give_back(self, pooled: PoolProxiedConnection, *, broken: bool = False) -> None:
        with self._unheard():
            if broken:
                pooled.invalidate()
            pooled.close()

    @contextmanager
    def _unheard(self) -> Generator[None]:
        heard = self.replaced.dispatch
        vars(self.replaced)["dispatch"] = _Unheard(heard)
        try:
            yield
        finally:
            vars(self.replaced)["dispatch"] = heard

    def end(self) -> None:
        """Give the engine its pool back, and that the listeners set in the block."""
        added = [
            (name, listener)
            for name, own in self._own.items()
            for listener in getattr(self.dispatch, name).listeners
            if listener not in own
        ]
        engine = self.engine
        known = [each for each in added if event.contains(engine, *each)]
        for each in known:
            event.remove(engine, *each)
        engine.pool = self.replaced
        for name, listener in added:
            # The engine can remove again what was set on it.
            target = engine if (name, listener) in known else self.replaced
            event.listen(target, name, listener)
