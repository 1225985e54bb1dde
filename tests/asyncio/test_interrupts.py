"""No window on the async side either: in the thread that waits for the loop.

Each line that the package executes there while an async session is used, removed and
released is interrupted once, without the cyclic collector.
"""

from __future__ import annotations

import sys
import warnings
from typing import TYPE_CHECKING, TypeAlias

import pytest
from flask import Flask
from sqlalchemy import AsyncAdaptedQueuePool, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from flask_sqlalchemy_session.asyncio import FlaskAsyncScopedSession, use_one_event_loop
from tests.async_support import run, settle
from tests.leaks import collect
from tests.scope.test_interrupts import PACKAGE, Interrupter, run as run_interrupted
from tests.support import OopsError

if TYPE_CHECKING:
    from collections.abc import Callable

    Scoped: TypeAlias = FlaskAsyncScopedSession[AsyncSession]
    Scenario: TypeAlias = Callable[[Flask, Scoped], None]

pytestmark = pytest.mark.usefixtures("no_collector")


def a_context(app: Flask, session: Scoped) -> None:
    with app.app_context():
        app.ensure_sync(session.execute)(text("SELECT 1"))


def a_request(app: Flask, session: Scoped) -> None:
    app.test_client().get("/")


def a_removal(app: Flask, session: Scoped) -> None:
    with app.app_context():
        app.ensure_sync(session.execute)(text("SELECT 1"))
        app.ensure_sync(session.remove)()
        app.ensure_sync(session.execute)(text("SELECT 1"))


def a_failing_view(app: Flask, session: Scoped) -> None:
    with app.app_context():
        app.ensure_sync(session.execute)(text("SELECT 1"))
        raise OopsError


@pytest.mark.leaks
# A finaliser is interrupted too, and what it raises nobody can catch. The collector may
# end a connection before the session, and then SQLAlchemy says so.
@pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SAWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("scenario", [a_context, a_request, a_removal, a_failing_view])
@pytest.mark.parametrize("async_engine", ["aiosqlite"], indirect=True)
def test_an_interrupt_at_any_line_leaves_nothing_that_only_the_collector_ends(
    scenario: Scenario, error: type[BaseException], async_engine: AsyncEngine
) -> None:
    app = Flask("shop")
    app.testing = True
    use_one_event_loop(app)
    session = FlaskAsyncScopedSession(async_sessionmaker(async_engine), app)
    pool = async_engine.pool
    assert isinstance(pool, AsyncAdaptedQueuePool)

    @app.get("/")
    async def index() -> str:
        await session.execute(text("SELECT 1"))
        return ""

    def work() -> None:
        scenario(app, session)

    def interrupt(at: int) -> Interrupter:
        interrupter = Interrupter(at, error, PACKAGE)
        run_interrupted(interrupter, work)
        run(settle)
        return interrupter

    interrupt(0)  # what is made once, as the subclasses are
    lines = interrupt(0).lines
    assert lines > 100
    kept: set[str] = set()
    with warnings.catch_warnings():
        # A session that was interrupted before a teardown is closed by the safety net.
        warnings.simplefilter("ignore", ResourceWarning)
        for at in range(1, lines + 1):
            interrupter = interrupt(at)
            if pool.checkedout():
                kept.add(interrupter.where)
                collect()
                run(settle)
            assert pool.checkedout() == 0
            with app.app_context():  # the next one has its own session
                assert not session.in_transaction()
    # Up to Python 3.10 the first step of a context's `pop`, as in the core.
    left = {each.split()[-1] for each in kept}
    assert left <= ({"pop"} if sys.version_info < (3, 11) else set())
