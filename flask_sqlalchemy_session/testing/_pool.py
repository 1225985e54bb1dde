"""The pool that an engine has inside the block."""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from sqlalchemy import NullPool, QueuePool, event

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from sqlalchemy import Engine, Pool, PoolProxiedConnection
    from sqlalchemy.engine.interfaces import DBAPIConnection

_CREATING = ("first_connect", "connect")
_FORWARDED = (
    "checkout",
    "checkin",
    "reset",
    "invalidate",
    "soft_invalidate",
    "detach",
)


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
        listens = name not in ("checkout", "checkin", "reset")
        return getattr(self._dispatch, name) if listens else _Nobody()


class SharedPool(NullPool):
    """Hands out stand-ins, also after `Engine.dispose`, where another pool was.

    That one's listeners hear of each stand-in what they would of a connection, and
    never of the connection behind them all.
    """

    def __init__(
        self, engine: Engine, creator: Callable[[SharedPool], DBAPIConnection]
    ) -> None:
        super().__init__(partial(creator, self), dialect=engine.dialect)
        self.replaced: Pool = engine.pool
        self.info: dict[Any, Any] = {}
        self._out = self._made = self._in_use_unheard = 0
        self._heard = self.replaced.dispatch
        if isinstance(engine.pool, QueuePool):
            self._made = engine.pool.size() + engine.pool.overflow()
        for name in _FORWARDED:
            event.listen(self, name, partial(self._forward, name))
        self._own = {
            name: [*getattr(self.dispatch, name).listeners]
            for name in (*_CREATING, *_FORWARDED)
        }

    def _forward(self, name: str, *args: Any) -> None:
        if name == "checkout":
            # What listeners have kept of the connection when it was made.
            args[1].info.update(self.info)
            self._count(1)
        elif name == "checkin":
            self._count(-1)
        # Those of every pool are called already.
        for listener in [*getattr(self._heard, name).listeners]:
            listener(*args)
        if name == "detach":  # by which a stand-in leaves the pool for good
            self._forward("checkin", *args)

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
        self.info.update(pooled.info)
        return pooled

    def give_back(self, pooled: PoolProxiedConnection, *, broken: bool = False) -> None:
        with self._unheard():
            if broken:
                pooled.invalidate()
            pooled.close()

    @contextmanager
    def _unheard(self) -> Generator[None]:
        # Tasks can be in here at the same time.
        if not self._in_use_unheard:
            self._heard = self.replaced.dispatch
            vars(self.replaced)["dispatch"] = _Unheard(self._heard)
        self._in_use_unheard += 1
        try:
            yield
        finally:
            self._in_use_unheard -= 1
            if not self._in_use_unheard:
                vars(self.replaced)["dispatch"] = self._heard

    def hand_over(self) -> None:
        """Give the listeners that were set inside the block to the replaced pool."""
        for name, own in self._own.items():
            for listener in getattr(self.dispatch, name).listeners:
                if listener not in own:
                    event.listen(self.replaced, name, listener)

    # What an application can ask of a pool with a limit, which counts stand-ins here.

    def _count(self, step: int) -> None:
        self._out += step
        if isinstance(self.replaced, QueuePool):
            made = max(self._made, self._out)
            self._made = min(made, max(self.replaced.size(), self._out))

    def checkedout(self) -> int:
        return self._out

    def checkedin(self) -> int:
        return self._made - self._out

    def overflow(self) -> int:
        size: int = self.size()
        return self._made - size

    def status(self) -> str:
        if not isinstance(self.replaced, QueuePool):
            return self.replaced.status()
        return (
            f"Pool size: {self.size()}  Connections in pool: {self.checkedin()} "
            f"Current Overflow: {self.overflow()} "
            f"Current Checked out connections: {self._out}"
        )

    def __getattr__(self, name: str) -> Any:
        if name == "replaced" or name.startswith("_"):
            raise AttributeError(name)
        return getattr(self.replaced, name)
