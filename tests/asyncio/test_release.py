"""Promises 3 and 4 for async sessions: whatever fails, the connection is back.

Each test runs without the cyclic collector, which would hide what is held.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from contextvars import copy_context
from typing import TYPE_CHECKING, NoReturn, TypeAlias

import pytest
from flask import Flask
from sqlalchemy import create_engine, event, select, text
from sqlalchemy.exc import InterfaceError
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import Mapped, Session, mapped_column, sessionmaker

from flask_sqlalchemy_session import FlaskScopedSession
from flask_sqlalchemy_session.asyncio import (
    FlaskAsyncScopedSession,
    use_one_event_loop,
)
from tests.async_support import run, settle
from tests.faults import FAULTS, Side, get, get_and_catch
from tests.scope.flask_versions import REFUSES_A_FOREIGN_POP
from tests.support import (
    Base,
    Held,
    OopsError,
    User,
    allows,
    broken_rollback,
    raises,
    use as use_sync,
)

if TYPE_CHECKING:
    from collections.abc import (
        AsyncIterator,
        Callable,
        Coroutine,
        Generator,
        Iterator,
    )
    from pathlib import Path

    from sqlalchemy.orm import SessionTransaction

pytestmark = pytest.mark.usefixtures("no_collector")

Scoped: TypeAlias = FlaskAsyncScopedSession[AsyncSession]


class Other(Base):
    __tablename__ = "async_others"

    id: Mapped[int] = mapped_column(primary_key=True)


@pytest.fixture
def app() -> Flask:
    app = Flask("shop")
    use_one_event_loop(app)
    return app


@pytest.fixture
def held(async_engine: AsyncEngine) -> Held:
    return Held(async_engine.sync_engine)


async def use(session: AsyncSession) -> None:
    """Take a connection, begin a transaction and leave marks of both."""
    await session.run_sync(use_sync)


class AsyncSide(Side[Scoped]):
    def init_app(self, app: Flask) -> None:
        use_one_event_loop(app)
        super().init_app(app)

    async def use(self) -> None:
        await use(self.session())

    def does(
        self, *steps: Callable[[], object]
    ) -> Callable[..., Coroutine[object, object, str]]:
        async def work(*_: object) -> str:
            for step in steps:
                done = step()
                if inspect.isawaitable(done):
                    await done
            return "done"

        return work


OWN: list[Callable[[Flask, AsyncSide], object]] = []
"""What only an async session can meet."""


def fault(
    function: Callable[[Flask, AsyncSide], object],
) -> Callable[[Flask, AsyncSide], object]:
    OWN.append(function)
    return function


@fault
def a_listener_that_makes_a_session_while_one_closes(
    app: Flask, side: AsyncSide
) -> object:
    session = side.set_up()
    made: list[AsyncSession] = []

    @app.get("/")
    async def index() -> str:
        await use(session())
        event.listen(session().sync_session, "after_transaction_end", listen)
        return ""

    def listen(_: Session, transaction: SessionTransaction) -> None:
        if transaction.parent is None:
            made.append(session())
            use_sync(session.sync_session)

    get(app)
    assert made
    return made


@contextmanager
def interrupts() -> Iterator[None]:
    """Let a signal raise in the thread that waits."""

    def interrupt(*_: object) -> None:
        raise OopsError

    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR1, before)


async def wait_for_an_interrupt() -> None:
    os.kill(os.getpid(), signal.SIGUSR1)
    await asyncio.Event().wait()


@fault
def an_interrupt_in_the_view(app: Flask, side: AsyncSide) -> object:
    session = side.set_up()

    @app.get("/")
    async def index() -> str:
        await use(session())
        await wait_for_an_interrupt()
        return ""

    with interrupts():
        return get_and_catch(app)


@fault
def an_interrupt_in_remove(app: Flask, side: AsyncSide) -> object:
    session = side.set_up()
    side.view(side.use)
    session.remove = wait_for_an_interrupt  # type: ignore[method-assign]
    with interrupts():
        caught = get_and_catch(app)
    del session.remove
    return caught


@fault
def an_interrupt_while_the_session_closes(app: Flask, side: AsyncSide) -> object:
    session = side.set_up()

    @app.get("/")
    async def index() -> str:
        await use(session())
        # What closing a session awaits.
        session().close = wait_for_an_interrupt  # type: ignore[method-assign]
        return ""

    with interrupts():
        return get_and_catch(app)


@fault
def a_task_that_uses_the_session_after_the_request(
    app: Flask, side: AsyncSide
) -> object:
    session = side.set_up()
    tasks: list[asyncio.Task[None]] = []
    answered = asyncio.Event()

    @app.get("/")
    async def index() -> str:
        await use(session())
        tasks.append(asyncio.create_task(late()))
        return ""

    async def late() -> None:
        await answered.wait()
        with pytest.raises(RuntimeError, match="outlived the view"):
            await use(session())

    async def end() -> None:
        answered.set()
        await tasks.pop()

    get(app)
    run(end)
    return None


@fault
def a_task_that_still_uses_the_session_when_the_request_ends(
    app: Flask, side: AsyncSide
) -> object:
    session = side.set_up()
    tasks: list[asyncio.Task[None]] = []

    @app.get("/")
    async def index() -> str:
        tasks.append(asyncio.create_task(use(session())))
        await asyncio.sleep(0)
        return ""

    async def end() -> None:
        await asyncio.wait(tasks)
        tasks.pop().exception()

    # asyncpg refuses the rollback while the task's own query is still on its way.
    with suppress(InterfaceError):
        get(app)
    run(end)
    return None


@fault
def contexts_of_several_applications_in_one_another(
    app: Flask, side: AsyncSide
) -> object:
    session = side.set_up()
    other = Flask("other")
    use_one_event_loop(other)
    session.init_app(other)

    async def use_anew() -> None:
        assert "mark" not in session.info
        session.info["mark"] = True
        await session.scalars(select(User))  # SQLite has one writer at a time

    for inner in (app, other):
        with app.app_context():
            app.ensure_sync(use_anew)()
            outer = session()
            with inner.app_context():
                inner.ensure_sync(use_anew)()
            assert session() is outer
            assert session.in_transaction()
    return None


@fault
def a_context_on_the_loop_that_ends_by_an_error(app: Flask, side: AsyncSide) -> object:
    session = side.set_up()

    async def use_and_fail() -> NoReturn:
        with app.app_context():
            await use(session())
            raise OopsError

    app.add_url_rule("/", view_func=use_and_fail)
    return get_and_catch(app)


@fault
def a_failed_flush(app: Flask, side: AsyncSide) -> object:
    session = side.set_up()

    @app.get("/")
    async def index() -> str:
        await use(session())
        try:
            async with session.begin_nested():
                await session.execute(text("nonsense"))
        except Exception:  # noqa: BLE001  # whichever the database raises
            await session.begin_nested()
        await session.execute(text("nonsense"))
        return ""

    assert app.test_client().get("/").status_code == 500
    return None


@pytest.mark.parametrize("fault", [*FAULTS, *OWN], ids=lambda fault: fault.__name__)
def test_the_connection_is_back_and_nothing_leaks_after(
    fault: Callable[[Flask, AsyncSide], object],
    app: Flask,
    async_engine: AsyncEngine,
    held: Held,
    idle_in_transaction: Callable[[], int],
) -> None:
    maker = async_sessionmaker(async_engine)
    side = AsyncSide(app, lambda: FlaskAsyncScopedSession(maker, app))

    async def look() -> None:
        session = side.session()
        assert "mark" not in session.info
        assert not session.in_transaction()
        assert not session.identity_map
        assert (await session.scalars(select(User))).all() == []

    kept = fault(app, side)
    run(settle)
    assert held.count == 0
    assert idle_in_transaction() == 0
    with allows(OopsError), app.app_context():  # the hooks that raise still do
        app.ensure_sync(look)()
    assert held.count == 0
    del kept


@pytest.mark.timeout(60)
def test_who_reclaims_a_generator_and_holds_a_lock_that_the_loop_waits_for_goes_on(
    app: Flask, async_engine: AsyncEngine, held: Held
) -> None:
    """As a collection does in a thread that writes to a log."""
    if REFUSES_A_FOREIGN_POP:
        pytest.skip("Flask 3.2 refuses to pop a context that is not current")
    session = FlaskAsyncScopedSession(async_sessionmaker(async_engine), app)
    lock, waits = threading.Lock(), threading.Event()
    abandoned: list[Generator[str]] = []

    def rows() -> Generator[str]:
        with app.app_context():
            yield str(app.ensure_sync(read)())
            yield "never"

    async def read() -> object:
        return await session.scalar(text("SELECT 1"))

    @app.get("/")
    async def view() -> str:
        waits.set()
        with lock:
            return "ok"

    def begin() -> None:
        abandoned.append(rows())
        assert next(abandoned[0]) == "1"

    copy_context().run(begin)
    with ThreadPoolExecutor(1) as pool:
        with lock:
            answer = pool.submit(app.test_client().get, "/")
            assert waits.wait(30)
            with suppress(Exception):  # Flask's own, of a context that is not current
                abandoned.pop().close()
            assert not answer.done()
        assert answer.result(30).text == "ok"
    run(settle)
    assert held.count == 0


def test_an_abandoned_generator_on_the_loop_ends_its_context_and_no_other(
    app: Flask,
    async_engine: AsyncEngine,
    held: Held,
    idle_in_transaction: Callable[[], int],
) -> None:
    if REFUSES_A_FOREIGN_POP:
        pytest.skip("Flask 3.2 refuses to pop a context that is not current")
    session = FlaskAsyncScopedSession(async_sessionmaker(async_engine), app)
    abandoned: list[AsyncIterator[object]] = []
    ended: list[AsyncSession] = []

    async def rows() -> AsyncIterator[object]:
        with app.app_context():
            ended.append(session())
            yield await session.scalar(select(User))
            yield None

    async def begin() -> None:
        abandoned.append(rows())
        await anext(abandoned[0])

    @app.get("/begin")
    async def view_that_leaves_it() -> str:
        # A task has context variables of its own, and so the view keeps its context.
        await asyncio.create_task(begin())
        return ""

    @app.get("/")
    async def view() -> str:
        mine = session()
        mine.add(User(name="live"))
        await mine.flush()
        assert held.count == 2
        abandoned.clear()
        for _ in range(2):  # the generator's end, and its session's
            await asyncio.sleep(0)
            await settle()
        assert held.count == 1
        assert session() is mine
        assert not ended[0].in_transaction()
        await mine.commit()
        return "committed"

    app.testing = True
    app.test_client().get("/begin")
    assert held.count == 1
    assert app.test_client().get("/").text == "committed"
    run(settle)
    assert held.count == 0
    assert idle_in_transaction() == 0

    async def names() -> list[str]:
        async with async_engine.connect() as connection:
            return list(await connection.scalars(select(User.name)))

    assert run(names) == ["live"]


@pytest.fixture
def second(tmp_path: Path) -> Iterator[AsyncEngine]:
    """A second database."""
    file = f"{tmp_path}/second.sqlite3"
    engine = create_engine(f"sqlite:///{file}")
    Base.metadata.create_all(engine)
    engine.dispose()
    second = create_async_engine(f"sqlite+aiosqlite:///{file}")
    yield second
    run(second.dispose)


def serve(app: Flask, view: Callable[[], Coroutine[object, object, None]]) -> None:
    with app.app_context():
        app.ensure_sync(view)()


@pytest.mark.parametrize("broken", ["first", "second", "both"])
def test_both_databases_of_a_session_are_released_when_closing_it_fails(
    broken: str, app: Flask, async_engine: AsyncEngine, second: AsyncEngine
) -> None:
    first = async_engine.sync_engine
    held, held_second = Held(first), Held(second.sync_engine)
    session = FlaskAsyncScopedSession(
        async_sessionmaker(binds={User: async_engine, Other: second}), app
    )
    engines = {
        "first": [first],
        "second": [second.sync_engine],
        "both": [first, second.sync_engine],
    }

    async def use_both() -> None:
        assert "mark" not in session.info
        session.info["mark"] = True
        for model in (Other, User):
            assert (await session.scalars(select(model))).all() == []
        assert (held.count, held_second.count) == (1, 1)

    with broken_rollback(*engines[broken]):
        with raises(OopsError) as caught:
            serve(app, use_both)
        assert (held.count, held_second.count) == (0, 0)
    serve(app, use_both)
    assert (held.count, held_second.count) == (0, 0)
    del caught


@pytest.mark.parametrize("broken", ["sync", "async", "both"])
def test_a_sync_and_an_async_session_are_released_when_closing_one_fails(
    broken: str, app: Flask, async_engine: AsyncEngine, held: Held, tmp_path: Path
) -> None:
    engine = create_engine(f"sqlite:///{tmp_path}/sync.sqlite3")
    Base.metadata.create_all(engine)
    engines = {
        "sync": [engine],
        "async": [async_engine.sync_engine],
        "both": [engine, async_engine.sync_engine],
    }
    held_sync = Held(engine)
    session = FlaskScopedSession(sessionmaker(engine), app)
    async_session = FlaskAsyncScopedSession(async_sessionmaker(async_engine), app)

    def use_both() -> None:
        with app.app_context():
            assert "mark" not in session.info
            assert "mark" not in async_session.info
            app.ensure_sync(use_async)()
            use_sync(session())
            assert (held.count, held_sync.count) == (1, 1)

    async def use_async() -> None:
        await use(async_session())

    with broken_rollback(*engines[broken]):
        with raises(OopsError) as caught:
            use_both()
        assert (held.count, held_sync.count) == (0, 0)
    use_both()
    assert (held.count, held_sync.count) == (0, 0)
    del caught
    engine.dispose()


def test_a_context_on_the_loop_is_released_when_closing_fails(
    app: Flask,
    async_engine: AsyncEngine,
    held: Held,
    caplog: pytest.LogCaptureFixture,
) -> None:
    session = FlaskAsyncScopedSession(async_sessionmaker(async_engine), app)

    async def use_inside() -> None:
        with app.app_context():
            await use(session())

    with broken_rollback(async_engine.sync_engine):
        run(use_inside)
        run(settle)
    assert held.count == 0
    (record,) = caplog.records
    assert record.name == "asyncio"
    assert "OopsError" in caplog.text


def test_a_listener_that_always_fails_keeps_no_connection(
    app: Flask, async_engine: AsyncEngine, held: Held
) -> None:
    session = FlaskAsyncScopedSession(async_sessionmaker(async_engine), app)

    def listen(*_: object) -> None:
        raise OopsError

    async def use_and_listen() -> None:
        await use(session())
        event.listen(session.sync_session, "after_transaction_end", listen)

    with raises(OopsError) as caught:
        serve(app, use_and_listen)
    assert held.count == 0
    del caught


def test_a_transaction_that_failed_to_roll_back_does_not_reach_the_next_context(
    app: Flask, async_engine: AsyncEngine
) -> None:
    # Whose pool does not roll back what it gets back.
    careless = create_async_engine(
        async_engine.url, poolclass=type(async_engine.pool), pool_reset_on_return=None
    )
    held = Held(careless.sync_engine)
    session = FlaskAsyncScopedSession(async_sessionmaker(careless), app)

    async def use_it() -> None:
        await use(session())

    async def look() -> None:
        assert (await session.scalars(select(User))).all() == []

    with broken_rollback(careless.sync_engine), raises(OopsError):
        serve(app, use_it)
    serve(app, look)
    assert held.count == 0
    run(careless.dispose)


def test_remove_gives_the_connection_back_when_closing_fails(
    app: Flask, async_engine: AsyncEngine, held: Held
) -> None:
    session = FlaskAsyncScopedSession(async_sessionmaker(async_engine), app)

    async def use_and_remove() -> None:
        await use(session())
        with broken_rollback(async_engine.sync_engine), pytest.raises(OopsError):
            await session.remove()
        assert held.count == 0
        assert "mark" not in session.info

    serve(app, use_and_remove)
    assert held.count == 0


def test_a_session_that_sync_code_on_a_loop_has_made_is_closed_where_it_is_used(
    app: Flask, async_engine: AsyncEngine, held: Held
) -> None:
    """As in a notebook, or in an async test that calls a sync view."""
    session = FlaskAsyncScopedSession(async_sessionmaker(async_engine), app)

    async def on_a_loop_of_its_own() -> None:
        with app.app_context():
            scalar = session().scalar  # which makes it
            assert app.ensure_sync(scalar)(text("SELECT 1")) == 1
            assert held.count == 1
        assert held.count == 0

    asyncio.run(on_a_loop_of_its_own())
