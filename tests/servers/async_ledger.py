"""The application that tests/servers/test_async_servers.py serves."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from alembic import command
from alembic.config import Config
from flask import Flask, Response, stream_with_context
from sqlalchemy import MetaData, event, make_url, text
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

from examples.async_users.views import iterate
from flask_sqlalchemy_session.asyncio import (
    FlaskAsyncScopedSession,
    current_async_session,
    use_one_event_loop,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from sqlalchemy import Connection
    from sqlalchemy.engine.interfaces import Dialect

app = Flask(__name__)
use_one_event_loop(app)
url = make_url(os.environ["LEDGER_URL"])
engine = create_async_engine(url)
session = FlaskAsyncScopedSession(async_sessionmaker(engine), app)


@event.listens_for(engine.sync_engine, "do_connect")
def name_connection(
    dialect: Dialect, entry: object, arguments: object, keywords: dict[str, object]
) -> None:
    """Let the database tell which process opened a connection."""
    named = {"application_name": f"ledger-{os.getpid()}"}
    keywords |= {"server_settings": named} if dialect.driver == "asyncpg" else named


async def whose_backend() -> str:
    """Tell whether a connection is this process's own."""
    async with engine.connect() as connection:
        name = await connection.scalar(text("SHOW application_name"))
    return "its own" if name == f"ledger-{os.getpid()}" else f"of {name}"


# Ways to set the database up, each of which leaves a connection in the pool, for the
# workers that are forked afterwards to inherit.


async def through_the_engine() -> None:
    async with engine.begin() as connection:
        await connection.run_sync(MetaData().create_all)


async def through_a_session() -> None:
    await session.execute(text("SELECT 1"))
    await session.commit()


async def through_alembic() -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))

    def upgrade(connection: Connection) -> None:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")

    async with engine.begin() as connection:
        await connection.run_sync(upgrade)


SET_UPS = {
    "engine": through_the_engine,
    "session": through_a_session,
    "alembic": through_alembic,
}

if preload := os.environ.get("LEDGER_PRELOAD"):
    with app.app_context():
        app.ensure_sync(SET_UPS[preload])()


@app.before_request
async def claim() -> None:
    assert "claimed" not in session().info, "another request's session"
    session().info["claimed"] = True
    name = await session.scalar(text("SHOW application_name"))
    assert name == f"ledger-{os.getpid()}", "another process's connection"
    await session.rollback()


@app.post("/entries/<key>")
async def write(key: str) -> tuple[str, int]:
    await insert(key)
    await session.commit()
    return key, 201


@app.post("/failures/<key>")
async def fail(key: str) -> NoReturn:
    await insert(key)
    raise LookupError(key)


async def insert(key: str) -> None:
    statement = text("INSERT INTO async_ledger VALUES (:key)")
    await current_async_session.execute(statement, {"key": key})
    await asyncio.sleep(0)


@app.get("/stream")
def stream() -> Response:
    # Before Flask 3.1.2 an async view, in another thread, could not call this.
    return Response(stream_with_context(iterate(rows())), mimetype="text/plain")


async def rows() -> AsyncGenerator[str, None]:
    numbers = text("SELECT i FROM generate_series(1, 20000) AS i")
    result = await session.stream(numbers)
    try:
        async for part in result.scalars().partitions(500):
            yield "".join(f"{number}\n" for number in part)
        yield "end\n"
    finally:
        await result.close()


@app.get("/pool")
async def pool() -> dict[str, str]:
    await session.remove()
    return {"status": engine.pool.status()}
