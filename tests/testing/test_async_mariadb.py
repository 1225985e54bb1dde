"""`isolate` for async sessions on MariaDB's two async drivers."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from flask import Flask
from sqlalchemy import make_url, text
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    async_sessionmaker,
    create_async_engine,
)

from flask_sqlalchemy_session.asyncio import (
    FlaskAsyncScopedSession,
    use_one_event_loop,
)
from flask_sqlalchemy_session.testing import IsolationError, isolate

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def app() -> Flask:
    app = Flask("shop")
    use_one_event_loop(app)
    return app


MODES: dict[str, dict[str, Any]] = {
    "": {},
    "-autocommit": {"isolation_level": "AUTOCOMMIT"},
    "-connected-in-autocommit": {"connect_args": {"autocommit": True}},
}


@pytest.fixture(params=[d + m for d in ("asyncmy", "aiomysql") for m in MODES])
def engine(
    request: pytest.FixtureRequest, app: Flask, mariadb_url: str
) -> Iterator[AsyncEngine]:
    driver, dash, mode = request.param.partition("-")
    pytest.importorskip(driver)
    url = make_url(mariadb_url).set(drivername=f"mariadb+{driver}")
    engine = create_async_engine(url, **MODES[dash + mode])
    yield engine
    app.ensure_sync(engine.dispose)()


@pytest.fixture
def session(app: Flask, engine: AsyncEngine) -> FlaskAsyncScopedSession[AsyncSession]:
    return FlaskAsyncScopedSession(async_sessionmaker(engine), app)


def test_a_commit_is_seen_in_the_block_and_gone_after_it(
    app: Flask,
    engine: AsyncEngine,
    session: FlaskAsyncScopedSession[AsyncSession],
) -> None:

    async def execute(*statements: str) -> None:
        async with engine.begin() as connection:
            for statement in statements:
                await connection.execute(text(statement))

    async def use() -> int | None:
        await session.execute(text("INSERT INTO counted VALUES (1)"))
        await session.commit()
        options = {"isolation_level": "AUTOCOMMIT"}
        await session.connection(execution_options=options)
        await session.execute(text("INSERT INTO counted VALUES (2)"))
        await session.rollback()
        return await count()

    async def count() -> int | None:
        number: int | None = await session.scalar(text("SELECT count(*) FROM counted"))
        return number

    run = app.ensure_sync
    run(execute)("DROP TABLE IF EXISTS counted", "CREATE TABLE counted (id INTEGER)")
    with isolate(session), app.app_context():
        assert run(use)() == 2
    with app.app_context():
        assert run(count)() == 0
    run(execute)("DROP TABLE counted")


def test_a_statement_that_is_cancelled_ends_the_connection(
    app: Flask,
    session: FlaskAsyncScopedSession[AsyncSession],
) -> None:

    async def use() -> None:
        task = asyncio.create_task(wait())
        await asyncio.sleep(0.1)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    async def wait() -> None:
        await session.execute(text("SELECT SLEEP(1)"))

    with (
        pytest.raises(IsolationError, match="was lost"),
        isolate(session),
        app.app_context(),
    ):
        app.ensure_sync(use)()
    with app.app_context():
        assert app.ensure_sync(session.scalar)(text("SELECT 1")) == 1
