"""Promise 3: what is released belongs to the context that ends, wherever it ends.

Each context here ends inside a view of another one, which has begun a transaction.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest
from flask import Flask, g, stream_with_context
from flask.ctx import AppContext
from flask.globals import app_ctx
from sqlalchemy import func, select
from sqlalchemy.orm import Session
from werkzeug.test import EnvironBuilder

from flask_sqlalchemy_session import FlaskScopedSession, current_session
from tests.scope.flask_versions import (
    REFUSES_A_FOREIGN_POP,
    before_flask_3_2,
    flask_3_2,
)
from tests.support import Held, OopsError, User, default_session

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from sqlalchemy import Engine

    End: TypeAlias = Callable[[], object]
    # Begins another context, and returns what ends it.
    Start: TypeAlias = Callable[[Flask, list[Session]], End]

pytestmark = [
    pytest.mark.usefixtures("no_collector", "quiet_finalisers"),
    pytest.mark.parametrize("engine", ["postgresql"], indirect=True),
]

STARTS: list[Start] = []


def start(function: Start) -> Start:
    STARTS.append(function)
    return function


@pytest.fixture
def quiet_finalisers(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> Iterator[None]:
    """Let Flask refuse the foreign pop in a finaliser, which nobody can catch."""
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)
    with caplog.at_level(logging.CRITICAL, "asyncio"):
        yield


def use(ended: list[Session]) -> None:
    current_session.info["mark"] = True
    current_session.scalars(select(User)).all()
    ended.append(default_session())


def rows(app: Flask, ended: list[Session]) -> Iterator[int]:
    with app.app_context():
        use(ended)
        yield 1
        yield 2


def first_row(app: Flask, ended: list[Session]) -> None:
    for _ in rows(app, ended):
        raise OopsError


@start
def a_generator_of_a_job_that_raised(app: Flask, ended: list[Session]) -> End:
    def end() -> None:
        with ThreadPoolExecutor(1) as pool, suppress(OopsError):
            pool.submit(first_row, app, ended).result()

    return end


def stream_of(app: Flask) -> Iterator[bytes]:
    """Serve the streaming view as a server does, up to its first row."""
    environ = EnvironBuilder("/stream").get_environ()
    body = iter(app(environ, lambda *_: lambda _: None))
    assert next(body) == b"row"
    return body


@start
def a_streamed_body_of_another_thread(app: Flask, ended: list[Session]) -> End:
    with ThreadPoolExecutor(1) as pool:
        bodies = [pool.submit(stream_of, app).result()]
    return bodies.clear


@start
def a_streamed_body_of_an_earlier_request(app: Flask, ended: list[Session]) -> End:
    bodies = [contextvars.Context().run(stream_of, app)]
    return bodies.clear


@start
def a_context_that_another_thread_pushed(app: Flask, ended: list[Session]) -> End:
    context = app.app_context()

    def push() -> None:
        context.push()
        use(ended)

    with ThreadPoolExecutor(1) as pool:
        pool.submit(push).result()

    def end() -> None:
        # Which of them is raised is Flask's and Python's.
        with pytest.raises((ValueError, LookupError, AssertionError, RuntimeError)):
            context.pop()

    return end


@start
def a_context_below_another(app: Flask, ended: list[Session]) -> End:
    def pop_in_the_wrong_order() -> None:
        below, above = app.app_context(), app.app_context()
        below.push()
        use(ended)
        above.push()
        mine = default_session()
        mine.add(User(name="above"))
        mine.flush()
        with pytest.raises((AssertionError, RuntimeError)):
            below.pop()
        assert mine.in_transaction()
        mine.rollback()
        with suppress(AssertionError):
            above.pop()
        if REFUSES_A_FOREIGN_POP:
            below.pop()

    # The view's own context stays the current one of the view.
    return lambda: contextvars.copy_context().run(pop_in_the_wrong_order)


def streaming_view(app: Flask, ended: list[Session]) -> None:
    @app.get("/stream")
    def stream() -> Iterator[str]:
        def body() -> Iterator[str]:
            use(ended)
            yield "row"
            yield "row"

        return stream_with_context(body())


NEVER_ENDS = {
    each.__name__
    for each in (
        a_generator_of_a_job_that_raised,
        a_streamed_body_of_another_thread,
        a_streamed_body_of_an_earlier_request,
        a_context_that_another_thread_pushed,
    )
}
"""Where Flask 3.2 refuses to pop a context that is not current, it does not end."""


@pytest.mark.parametrize("start", STARTS, ids=lambda start: start.__name__)
def test_a_view_keeps_its_transaction_when_it_meets_the_end_of(
    start: Start,
    app: Flask,
    session: FlaskScopedSession[Session],
    engine: Engine,
    held: Held,
) -> None:
    if REFUSES_A_FOREIGN_POP and start.__name__ in NEVER_ENDS:
        pytest.skip("Flask 3.2 refuses to pop a context that is not current")
    ended: list[Session] = []
    streaming_view(app, ended)

    @app.get("/")
    def view() -> str:
        mine = session()
        mine.info["live"] = True
        mine.add(User(name="live"))
        mine.flush()
        end()
        assert session() is mine
        assert mine.info == {"live": True}
        assert not ended[0].in_transaction()
        assert held.count == 1
        session.commit()
        return "committed"

    end = start(app, ended)
    response = app.test_client().get("/")
    assert response.text == "committed"
    assert held.count == 0
    with Session(engine) as after:
        assert after.scalar(select(func.count()).select_from(User)) == 1


def test_an_async_view_keeps_its_transaction_when_the_loop_ends_a_generator(
    app: Flask, session: FlaskScopedSession[Session], engine: Engine, held: Held
) -> None:
    ended: list[Session] = []

    async def rows() -> AsyncIterator[int]:
        with app.app_context():
            use(ended)
            yield 1
            yield 2

    async def abandon() -> None:
        async for _ in rows():
            return

    @app.get("/")
    async def view() -> str:
        mine = session()
        mine.add(User(name="live"))
        mine.flush()
        # A task has context variables of its own, and so the view keeps its context.
        await asyncio.create_task(abandon())
        for _ in range(5):  # turns of the loop, on which the generator is finalised
            await asyncio.sleep(0)
        assert session() is mine
        assert not ended[0].in_transaction()
        assert held.count == 1
        session.commit()
        return "committed"

    if REFUSES_A_FOREIGN_POP:
        pytest.skip("Flask 3.2 refuses to pop a context that is not current")
    assert app.test_client().get("/").text == "committed"
    assert held.count == 0
    with Session(engine) as after:
        assert after.scalar(select(func.count()).select_from(User)) == 1


@flask_3_2("it refuses to pop a context that is not current")
def test_a_context_that_flask_refuses_to_pop_is_live_until_it_is_popped(
    app: Flask, session: FlaskScopedSession[Session], engine: Engine, held: Held
) -> None:
    context = app.app_context()
    variables = contextvars.Context()
    variables.run(context.push)
    variables.run(session.add, User(name="live"))
    with app.app_context():
        with pytest.raises(RuntimeError):
            context.pop()
        assert variables.run(session.in_transaction)
        variables.run(session.commit)
    variables.run(context.pop)
    assert held.count == 0
    with Session(engine) as after:
        assert after.scalar(select(func.count()).select_from(User)) == 1


def test_a_context_that_is_pushed_twice_is_live_until_its_last_pop(
    app: Flask, session: FlaskScopedSession[Session], engine: Engine, held: Held
) -> None:
    with app.app_context() as context:
        session.add(User(name="live"))
        session.flush()
        context.push()
        with ThreadPoolExecutor(1) as pool, pytest.raises((LookupError, RuntimeError)):
            pool.submit(context.pop).result()
        context.pop()
        with app.app_context():
            pass
        assert session.in_transaction()
        session.commit()
        session.scalars(select(User)).all()
        assert held.count == 1
    assert held.count == 0
    with Session(engine) as after:
        assert after.scalar(select(func.count()).select_from(User)) == 1


def test_a_hook_that_opens_a_context_keeps_the_session_of_its_own(
    app: Flask, session: FlaskScopedSession[Session], held: Held
) -> None:
    kept: list[bool] = []

    @app.teardown_appcontext
    def nest(_: BaseException | None) -> None:
        if "outer" in g:
            mine = session()
            with app.app_context():
                pass
            kept.append(session() is mine and mine.in_transaction())

    with app.app_context():
        g.outer = True
        session.scalars(select(User)).all()
    assert kept == [True]
    assert held.count == 0


def test_the_end_of_a_context_that_used_no_session_leaves_the_live_one_alone(
    app: Flask, session: FlaskScopedSession[Session], held: Held
) -> None:
    context = app.app_context()
    contextvars.Context().run(context.push)
    with app.app_context():
        session.add(User(name="live"))
        session.flush()
        with pytest.raises((ValueError, RuntimeError)):
            context.pop()
        assert session.in_transaction()
        session.rollback()
    assert held.count == 0


@before_flask_3_2("it refuses to pop a context that is not current")
@pytest.mark.parametrize("kind", ["a request", "a context"])
def test_what_is_used_after_a_pop_elsewhere_is_released_at_its_own_end(
    kind: str, app: Flask, session: FlaskScopedSession[Session], held: Held
) -> None:
    def work() -> str:
        session.scalars(select(User)).all()
        context: AppContext = app_ctx._get_current_object()  # type: ignore[attr-defined]
        with ThreadPoolExecutor(1) as pool:
            # Flask empties a context's tokens only on a thread that has a context.
            pool.submit(pop_in_another_context, context).result()
        assert held.count == 0
        session.scalars(select(User)).all()
        assert held.count == 1
        return "used"

    def pop_in_another_context(context: AppContext) -> None:
        with app.app_context(), suppress(ValueError):
            context.pop()

    def work_in_a_context() -> None:
        with app.app_context():
            work()

    app.add_url_rule("/", view_func=work)
    request = partial(app.test_client().get, "/")
    # It stays current where it was pushed, as Flask fails to pop it again.
    with suppress(IndexError):
        contextvars.Context().run(request if kind == "a request" else work_in_a_context)
    assert held.count == 0


def test_a_context_whose_end_opens_another_one_is_released(
    app: Flask, session: FlaskScopedSession[Session], held: Held
) -> None:
    class Audited(AppContext):
        def pop(self, *args: Any) -> None:
            with app.app_context():
                session.scalars(select(User)).all()
            super().pop(*args)

    context = Audited(app)
    with context:
        session.scalars(select(User)).all()
    assert held.count == 0  # though the context is kept


def drop(bodies: list[Iterator[str]]) -> None:
    bodies.clear()


def read(bodies: list[Iterator[str]]) -> None:
    with suppress(ValueError, LookupError, RuntimeError):  # Flask's, at the end
        list(bodies[0])


@before_flask_3_2("a request whose body another thread ends is never popped whole")
@pytest.mark.parametrize("end", [drop, read])
def test_a_view_keeps_its_transaction_when_another_thread_ends_a_body_that_it_began(
    end: Callable[[list[Iterator[str]]], object],
    app: Flask,
    session: FlaskScopedSession[Session],
    engine: Engine,
    held: Held,
) -> None:
    @app.get("/")
    def view() -> str:
        mine = session()
        mine.add(User(name="live"))
        mine.flush()
        bodies = [iter(stream_with_context(iter("ab")))]
        next(bodies[0])
        with ThreadPoolExecutor(1) as pool:
            pool.submit(end, bodies).result()
        assert session() is mine
        session.commit()
        session.scalars(select(User)).all()
        return "committed"

    # Flask never tears the request's context down, and leaves it where it was pushed.
    response = contextvars.Context().run(app.test_client().get, "/")
    assert response.text == "committed"
    assert held.count == 0
    with Session(engine) as after:
        assert after.scalar(select(func.count()).select_from(User)) == 1
