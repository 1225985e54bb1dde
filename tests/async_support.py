"""What the tests of async sessions share: the loop, and how to wait for it."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

from flask import Flask
from sqlalchemy import URL, make_url

from flask_sqlalchemy_session.asyncio import use_one_event_loop

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from pathlib import Path
    from typing import TypeVar

    import pytest

    T = TypeVar("T")


def run(function: Callable[[], Coroutine[object, object, T]]) -> T:
    """Run a coroutine function on the loop that all applications share."""
    app = Flask("another")
    use_one_event_loop(app)
    result: T = app.ensure_sync(function)()
    return result


def wait_until(holds: Callable[[], bool]) -> None:
    """Let the loop go on until a claim holds; the test's time limit ends it."""
    while not holds():
        run(_turn)


async def _turn() -> None:
    await asyncio.sleep(0.001)


def async_url(driver: str, request: pytest.FixtureRequest, directory: Path) -> URL:
    """Return where a driver finds a database of the test's own, or the server's."""
    if driver == "aiosqlite":
        return make_url(f"sqlite+aiosqlite:///{directory}/test.sqlite3")
    url = make_url(request.getfixturevalue("postgresql_url"))
    return url.set(drivername=f"postgresql+{driver}")


async def running_loop() -> asyncio.AbstractEventLoop:
    return asyncio.get_running_loop()


async def settle() -> None:
    """Let the loop finish what it was told to do and nobody waits for."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    if tasks:
        _, running = await asyncio.wait(tasks, timeout=10)
        assert not running


def in_a_thread(work: Callable[[], object]) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
