"""The block: what :func:`isolate` takes, begins and ends."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable  # for get_type_hints
from contextlib import ContextDecorator, ExitStack, suppress
from functools import partial
from itertools import count
from os.path import realpath
from threading import RLock
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable
from weakref import WeakKeyDictionary

from sqlalchemy import URL, Connection, Dialect, Engine, event
from sqlalchemy.exc import IllegalStateChangeError

from flask_sqlalchemy_session._context import current_context
from flask_sqlalchemy_session._owner import ContextScoped

from ._errors import IsolationError
from ._pool import SharedPool
from ._shared import SharedConnection
from ._stand_in import StandIn, refuse_to_prepare

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from flask_sqlalchemy_session._registry import ContextRegistry

    _Registry = ContextRegistry[Any]  # whatever the type of its sessions

_F = TypeVar("_F", bound=Callable[..., Any])

_REPLACED = frozenset({"get_bind", "connection", "prepare", "twophase"})
"""What is set on a session, to be told of its engines before it connects to them."""

_RUN_LATER = (
    inspect.isclass,
    inspect.isgeneratorfunction,
    inspect.iscoroutinefunction,
    inspect.isasyncgenfunction,
)

_moments = count(1)
_last_uses: WeakKeyDictionary[Dialect, int] = WeakKeyDictionary()
"""When an engine that is not isolated was last used, from the first block on.

Each has a dialect of its own, which it keeps when `Engine.dispose` takes its pool.
"""


@runtime_checkable
class Isolatable(Protocol):
    """A scoped session object, sync or async, whatever the type of its sessions."""

    @property
    def name(self) -> str:
        """The name that it has on its application."""
        ...

    @property
    def registry(self) -> object:
        """What makes its sessions."""
        ...

    def remove(self) -> object:
        """Close the current context's session, or return what does when awaited."""
        ...


@runtime_checkable
class HasSyncEngine(Protocol):
    """An :class:`~sqlalchemy.ext.asyncio.AsyncEngine`."""

    @property
    def sync_engine(self) -> Engine:
        """The engine that does its work."""
        ...


class Isolation(ContextDecorator):
    """What :func:`isolate` returns: a context manager and decorator."""

    def __init__(self, session: object, *more: object) -> None:
        engines = [engine for engine in map(_engine_of, more) if engine is not None]
        sessions = [session, *(one for one in more if _engine_of(one) is None)]
        self._engines = engines
        self._registries = [_registry_of(one) for one in sessions]
        self._lock = RLock()
        self._ended = False
        self._began = 0
        self._shared: list[SharedConnection] = []
        # The sessions made in the block, with who made them and what they had for the
        # attributes that are replaced.
        self._prepared: WeakKeyDictionary[object, tuple[_Registry, dict[str, Any]]]
        self._prepared = WeakKeyDictionary()

    def __enter__(self) -> None:
        """Begin the block. The database is not touched before an engine is used.

        :raises RuntimeError: when one of the objects is isolated already, is given
            twice, or has a session in the current context; or when one is async, and
            an event loop runs here.
        :raises IsolationError: when two of the engines are of one database and can't
            share a connection.
        """
        is_async = not all(one.serves_a_thread for one in self._registries)
        if is_async and _runs_on_a_loop():
            raise RuntimeError(
                "The end of an isolate() block waits for the event loop, and can't on "
                "that loop. Write 'async with isolate(...)'. [async-with]"
            )
        self._begin()

    async def __aenter__(self) -> None:
        """Begin the block, as :meth:`__enter__` does, in a coroutine.

        :raises RuntimeError: as there.
        :raises IsolationError: as there.
        """
        self._begin()

    def _begin(self) -> None:
        for registry in self._registries:
            if registry.prepare is not None or self._registries.count(registry) > 1:
                raise RuntimeError(
                    f"The session named {registry.name!r} is isolated already. Leave "
                    "out the inner isolate(). [isolated-already]"
                )
            if registry.has():
                raise RuntimeError(
                    f"The session named {registry.name!r} is open in the current "
                    "context. Enter the block before the context, or call "
                    "'session.remove()' first. [open-session]"
                )
        self._ended, self._began = False, next(_moments)
        self._shared = []
        self._prepared.clear()
        if not event.contains(Engine, "engine_connect", _note_use):
            event.listen(Engine, "engine_connect", _note_use)
        try:
            for engine in [*self._engines, *_engines_of(self._registries)]:
                self._reach(engine)
            for registry in self._registries:
                registry.prepare = partial(self._prepare, registry)
        except BaseException:
            self._end()
            raise

    def __exit__(self, type_: object, value: object, traceback: object) -> None:
        """Close the sessions made in the block and roll everything back.

        Each engine gets its pool, and each pool its connection back, whatever fails.

        :raises IsolationError: when the block had to refuse something and the
            refusal was swallowed; when the transaction was ended by something else,
            or the connection lost; or when tables have rows left that the database
            can't roll back.
        """
        # An interrupt may come before all has ended, and this makes up for it.
        try: refused = self._end()  # fmt: skip  # noqa: E701
        except BaseException:
            with suppress(Exception):
                self._end()
            raise
        if value is None and refused is not None:
            raise refused

    async def __aexit__(self, type_: object, value: object, traceback: object) -> None:
        """End the block, as :meth:`__exit__` does, in a coroutine.

        :raises IsolationError: as there.
        """
        # Another thread can wait for what this one's loop has to do.
        await asyncio.to_thread(self.__exit__, type_, value, traceback)

    def _end(self) -> IsolationError | None:
        """End all that was begun, whatever fails and whoever goes on.

        What it has ended it leaves as it is, when it is called again.

        :return: what the block had to refuse, if it had to.
        """
        with ExitStack() as stack:
            for registry in self._registries:
                stack.callback(setattr, registry, "prepare", None)
            with self._lock:  # no engine is taken over and no session prepared after
                self._ended = True
            for connection in self._shared:
                connection.savepoints.closing = True
                stack.callback(connection.end)
            for session, (registry, attributes) in [*self._prepared.items()]:
                stack.callback(_restore, registry.sync_session(session), attributes)
                stack.callback(_close, registry, session)
            for registry in self._registries:
                holder = registry.holder()
                if holder is not None:
                    stack.callback(registry.release, holder, current_context())
        refused = [one.savepoints.refused for one in self._shared]
        return next(filter(None, refused), None)

    def _prepare(self, registry: _Registry, made: object) -> None:
        """Let a new session's engines be taken over before it connects to them."""
        session = registry.sync_session(made)
        if session.in_transaction():
            registry.close_session(made)
            raise IsolationError(
                "The session factory returned a session that is in a transaction "
                "already. Begin it where the session is used. [in-transaction]"
            )
        get_bind, connection = session.get_bind, session.connection

        def reaching_get_bind(*args: Any, **kwargs: Any) -> Engine | Connection:
            return self._reach(get_bind(*args, **kwargs))

        def reaching_connection(
            bind_arguments: dict[str, Any] | None = None, *args: Any, **kwargs: Any
        ) -> Connection:
            # `get_bind` is not asked about a bind that is named.
            if bind_arguments and bind_arguments.get("bind") is not None:
                self._reach(bind_arguments["bind"])
            return connection(bind_arguments, *args, **kwargs)

        attributes = vars(session)
        with self._lock:
            # A thread that is late has a session as after the block.
            if not self._ended and made not in self._prepared:
                had = {name: attributes[name] for name in _REPLACED & attributes.keys()}
                event.listen(session, "after_begin", _note_session)
                self._prepared[made] = registry, had
                attributes["get_bind"] = reaching_get_bind
                attributes["connection"] = reaching_connection
                # A transaction that is prepared can't be undone.
                if session.twophase:
                    attributes["prepare"] = refuse_to_prepare
                    attributes["twophase"] = False

    def _reach(self, bind: Engine | Connection) -> Engine | Connection:
        """Take an engine over, if this is the first session to reach it."""
        if isinstance(bind, Connection):
            if not isinstance(bind.connection.dbapi_connection, StandIn):
                raise IsolationError(
                    "The session is bound to a connection that was opened outside "
                    "isolate(). Bind the session to the engine. [outside-connection]"
                )
            return bind
        with self._lock:
            pools = (pool for one in self._shared for pool in one.pools)
            # Each engine has a dialect of its own, which those with options share.
            taken = any(pool.engine.dialect is bind.dialect for pool in pools)
            if not self._ended and not taken:
                self._take_over(bind)
        return bind

    def _take_over(self, engine: Engine) -> None:
        if _last_uses.get(engine.dialect, 0) > self._began:
            raise IsolationError(
                f"{engine} was used in the block before a session reached it. Name it, "
                "to isolate it from the beginning: 'isolate(session, engine)'. "
                "[used-before]"
            )
        database = _database_of(engine)
        for shared in self._shared:
            other = shared.engine
            if database is None or _database_of(other) != database:
                continue
            one, two = other.dialect, engine.dialect
            if (one.driver, one.is_async) != (two.driver, two.is_async):
                alike = one.is_async == two.is_async
                raise IsolationError(
                    f"{engine} and {other} are engines of one database with "
                    f"{'different drivers' if alike else 'a sync and an async driver'}"
                    ", which can't share a connection. Use one driver for both in "
                    "tests, or empty the tables after a test that needs both. "
                    "[two-drivers]"
                )
            shared.take_over(engine)
            return
        self._shared.append(SharedConnection(engine))

    def __call__(self, func: _F) -> _F:
        """Decorate a function, so that each call of it is a block.

        :raises TypeError: when it is a class, a generator or a coroutine function,
            whose body runs after the call. Write the ``with`` statement in it.
        """
        if any(is_one(func) for is_one in _RUN_LATER):
            raise TypeError(
                f"isolate() decorates plain functions, and the body of {func!r} "
                "runs later. Write 'with isolate(session):' inside it. [decorated]"
            )
        return super().__call__(func)


def _engines_of(registries: list[_Registry]) -> list[Engine]:
    """Return the engines that a `sessionmaker` names for its sessions."""
    binds: list[object] = []
    for registry in registries:
        keywords = getattr(registry.owner.session_factory, "kw", {})
        binds += [keywords.get("bind"), *(keywords.get("binds") or {}).values()]
    return [engine for engine in map(_engine_of, binds) if engine is not None]


def _engine_of(bind: object) -> Engine | None:
    """Return the engine that a bind is, sync or async, if it is one."""
    # A scoped session object that is asked for what it lacks makes a session.
    if issubclass(type(bind), ContextScoped):
        return None
    # A connection is for the session to be refused.
    if isinstance(bind, HasSyncEngine) and not hasattr(bind, "sync_connection"):
        return bind.sync_engine
    return bind if isinstance(bind, Engine) else None


def _database_of(engine: Engine) -> URL | None:
    """Return what engines of one database have in common, if others can be of it."""
    url = engine.url
    backend, database = url.get_backend_name(), url.database
    if backend == "sqlite":
        is_shared = url.query.get("cache") == "shared"
        in_memory = ":memory:" in str(database) or url.query.get("mode") == "memory"
        if not database or (in_memory and not is_shared):
            return None
        database = realpath(database)
    return url.set(drivername=backend.replace("mariadb", "mysql"), database=database)


def _note_session(session: Session, _: object, connection: Connection) -> None:
    stand_in: object = connection.connection.dbapi_connection
    if isinstance(stand_in, StandIn):
        stand_in.session = session.hash_key


def _note_use(connection: Connection) -> None:
    if not isinstance(connection.engine.pool, SharedPool):
        _last_uses[connection.dialect] = next(_moments)


def _registry_of(session: Any) -> _Registry:
    # A proxy claims the class of its session, which has another `registry`.
    if not issubclass(type(session), ContextScoped):
        raise TypeError(
            "isolate() takes a FlaskScopedSession or a FlaskAsyncScopedSession, or "
            f"several, not {session!r}. [what-to-isolate]"
        )
    registry: _Registry = session.registry
    return registry


def _runs_on_a_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _close(registry: _Registry, session: object) -> None:
    """Close a session, but for one that another thread is inside of.

    That thread is told at its next statement that the block has ended.
    """
    with suppress(IllegalStateChangeError):
        registry.close_session(session)


def _restore(session: Session, attributes: dict[str, Any]) -> None:
    """Take the isolation off a session."""
    if event.contains(session, "after_begin", _note_session):
        event.remove(session, "after_begin", _note_session)
    for name in _REPLACED:
        vars(session).pop(name, None)
    vars(session).update(attributes)


def isolate(
    session: Isolatable, *more: Isolatable | Engine | HasSyncEngine
) -> Isolation:
    """Roll back, at the end of a block, what is done through a session inside it.

    For the tests of an application: its views commit, on a real database, and each
    test leaves the database as it found it. What is committed in the block, in any
    context and any request, is seen by the contexts that follow in it. The engines that
    a ``sessionmaker`` names are taken over when the block begins, others when they are
    named here or a session first reaches them, and given back at the end. Engines with
    equal URLs share one connection. The tables have to be there before the block, or
    are rolled back with it.

    A pytest fixture::

        @pytest.fixture(autouse=True)
        def isolated() -> Iterator[None]:
            with isolate(session):
                yield

    A :class:`unittest.TestCase`::

        class UserTest(unittest.TestCase):
            def setUp(self) -> None:
                block = ExitStack()
                block.enter_context(isolate(session))
                self.addCleanup(block.close)

    A decorated function, each call of which is a block::

        @isolate(session)
        def test_a_user_is_stored() -> None:
            with app.app_context():
                session.add(User(name="ann"))
                session.commit()
            assert app.test_client().get("/users/1").status_code == 200

    As there, test data is added in a context of its own, which ends before the
    requests.

    Inside the block an engine has one connection, in a transaction, and the
    transactions of its sessions are savepoints of that. So

    - sessions that are open at the same time, in nested contexts or in threads, see
      what the others have written and not committed. Threads take turns, statement by
      statement; but the connection of an SQLite database in memory, with its default
      pool, can only be used in the thread that used it first.
    - a session can't roll back what it wrote, nor be closed without a commit, once
      another has written after it and before its end. That raises an
      :exc:`IsolationError`, at once and again at the end of the block, and nothing is
      lost. Sessions that have only read end as they like.
    - an engine in AUTOCOMMIT keeps each statement, as it does otherwise, until the
      block ends.
    - all that uses such an engine is isolated: its ``connect()`` and ``begin()`` too.
    - what the database does only at a real commit is not done: deferred constraints are
      not checked, notifications not sent. Sequences keep the numbers that they gave.
      What makes a database commit by itself, as DDL does in MySQL, is refused.

    A session made in the block and still open at its end is closed; it can be used
    again and is not isolated any more. One that was made before the block, in another
    context, should not be used inside it: what it has begun is not rolled back.

    For async sessions too, of a :class:`.FlaskAsyncScopedSession`; in a coroutine write
    ``async with isolate(session):``. Its engine's one connection belongs to the event
    loop that used it first, which all has to run on and which has to run until the
    block has ended, as views and ``app.ensure_sync`` see to. Tasks take turns.

    :param session: a :class:`.FlaskScopedSession` or :class:`.FlaskAsyncScopedSession`.
    :param more: others, to be isolated in the same block, and engines, sync or async,
        that are used before a session reaches them.
    :return: the context manager, which is a decorator for plain functions too. It can
        be used again after the block.
    :raises TypeError: when it is given anything else.

    The block raises a :exc:`RuntimeError` on entry when one of the objects is isolated
    already, or has a session in the current context, or is async where ``with`` would
    have to wait on an event loop. What can't be isolated raises an
    :exc:`IsolationError` where it is tried: a session bound to a connection from
    outside, a session that its factory returns in a transaction, a two-phase commit by
    hand, a second event loop, an engine that was used in the block before a session
    reached it, engines of one database with different drivers, a database without
    savepoints, a connection that the server has ended.
    """
    return Isolation(session, *more)
