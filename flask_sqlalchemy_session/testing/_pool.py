"""The pool that an engine has inside the block."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sqlalchemy import QueuePool, event

if TYPE_CHECKING:
    from collections.abc import Generator

    from sqlalchemy import Engine, Pool, PoolProxiedConnection
    from sqlalchemy.pool import ConnectionPoolEntry

    from ._shared import SharedConnection
    from ._stand_in import Mode

_USE = ("checkout", "checkin", "reset", "invalidate", "soft_invalidate", "detach")


class _Nobody(tuple[()]):
    """No listeners. A pool that pings calls them without looking whether there are."""

    __slots__ = ()

    def __call__(self, *args: object) -> None:
        pass


class SharedPool(QueuePool):
    """Hands out stand-ins, also after `Engine.dispose`, where another pool was.

    That one's listeners hear of each stand-in what they would of a connection, and
    never of the connection behind them all.
    """

    mode: Mode | None = None
    """That of the engine's connections, once there was one."""

    def __init__(self, engine: Engine, shared: SharedConnection) -> None:
        self.engine = engine
        self.replaced: Pool = engine.pool
        self._shared = shared
        self._info: dict[Any, Any] = {}
        size = engine.pool.size() if isinstance(engine.pool, QueuePool) else 5
        super().__init__(
            self._stand_in, pool_size=size, max_overflow=-1, dialect=engine.dialect
        )
        # Both pools have the same ones, also of those that come or go in the block.
        heard = self.replaced.dispatch
        for name in _USE:
            setattr(self.dispatch, name, getattr(heard, name).for_modify(heard))

    def _stand_in(self, rec: ConnectionPoolEntry) -> Any:
        stand_in = self._shared.connect(self)
        # What listeners have kept of the connection when it was made.
        rec.info.update(self._info)
        return stand_in

    def connect(self) -> PoolProxiedConnection:
        self._shared.check_use()
        return super().connect()

    def status(self) -> str:
        # Another sort has no numbers to tell.
        is_queue = isinstance(self.replaced, QueuePool)
        return super().status() if is_queue else self.replaced.status()

    def recreate(self) -> SharedPool:
        return self

    def connect_for_real(self) -> PoolProxiedConnection:
        """Connect to the database itself, which no listener but its maker's hears."""
        with self._unheard():
            pooled = self.replaced.connect()
        self._info.update(pooled.info)
        return pooled

    def give_back(self, pooled: PoolProxiedConnection, *, drop: bool = False) -> None:
        with self._unheard():
            if drop:
                pooled.invalidate()
            pooled.close()

    @contextmanager
    def _unheard(self) -> Generator[None]:
        heard = self.replaced.dispatch
        try:
            for name in _USE:
                setattr(heard, name, _Nobody())
            yield
        finally:
            # Twice, as an interrupt may come in the first.
            try: self._be_heard()  # fmt: skip  # noqa: E701
            finally:
                self._be_heard()

    def _be_heard(self) -> None:
        for name in _USE:
            setattr(self.replaced.dispatch, name, getattr(self.dispatch, name))

    def end(self) -> None:
        """Give the engine its pool back, and that the listeners set in the block."""
        inner = self.engine.pool
        if inner is self:
            self.engine.pool = self.replaced
        # The blocks of several threads may end in any order.
        while isinstance(inner, SharedPool):
            if inner.replaced is self:
                inner.replaced = self.replaced
            inner = inner.replaced
        for listener in self.dispatch.connect.listeners:  # ty: ignore[missing-union-attribute]  # it has every event's name
            event.listen(self.engine, "connect", listener)
