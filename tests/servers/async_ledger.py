"""The application that tests/servers/test_async_servers.py serves."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, NoReturn

from flask import Flask, Response, stream_with_context
from sqlalchemy import make_url, text
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

from flask_sqlalchemy_session.asyncio import (
    FlaskAsyncScopedSession,
    current_async_session,
    use_one_event_loop,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator

app = Flask(__name__)
use_one_event_loop(app)
url = make_url(os.environ["LEDGER_URL"])
named = {"application_name": "ledger"}
engine = create_async_engine(
    url,
    connect_args={"server_settings": named} if "asyncpg" in url.drivername else named,
)
session = FlaskAsyncScopedSession(async_sessionmaker(engine), app)

if os.environ.get("LEDGER_PRELOAD"):

    async def warm_up() -> None:
        await session.execute(text("SELECT 1"))

    # It leaves a connection in the pool, which workers that are forked now inherit.
    with app.app_context():
        app.ensure_sync(warm_up)()


@app.before_request
async def claim() -> None:
    assert "claimed" not in session().info, "another request's session"
    session().info["claimed"] = True


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


def iterate(source: AsyncGenerator[str, None]) -> Iterator[str]:
    """Iterate over an async generator where the server, which is not async, does."""

    async def step() -> str | None:
        return await anext(source, None)

    async def close() -> None:
        await source.aclose()

    try:
        while (chunk := app.ensure_sync(step)()) is not None:
            yield chunk
    finally:
        app.ensure_sync(close)()


@app.get("/pool")
async def pool() -> dict[str, str]:
    await session.remove()
    return {"status": engine.pool.status()}
