"""The end of the process: quiet, and clear about what comes too late."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.async_support import async_url


def output_of(program: str, **environment: str) -> str:
    """Run a program, and return all that it wrote."""
    return subprocess.run(  # noqa: S603  # a program of the test's own
        [sys.executable, "-c", program],
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        cwd=Path(__file__).parents[2],
        env={**os.environ, **environment},
    ).stdout


SET_UP = """
import atexit, gc, os, threading
gc.disable()

from flask import Flask

app = Flask("shop")

def late():
    with app.app_context():
        try:
            app.ensure_sync(use)()
        except RuntimeError as error:
            print(error)
        session.add_all([])

if "LATE" in os.environ:
    atexit.register(late)

from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from flask_sqlalchemy_session.asyncio import (
    FlaskAsyncScopedSession,
    use_one_event_loop,
)

use_one_event_loop(app)
engine = create_async_engine(os.environ["URL"])
session = FlaskAsyncScopedSession(async_sessionmaker(engine), app)

@event.listens_for(engine.sync_engine, "rollback")
def say(connection):
    print("rolled back", flush=True)

async def use():
    await session.execute(text("SELECT 1"))

def leave():
    app.app_context().push()
    app.ensure_sync(use)()

"""

ENDS = {
    "in a thread that has ended": (
        "thread = threading.Thread(target=leave)\nthread.start()\nthread.join()\n"
    ),
    "in the main thread": "leave()\n",
    "by sync code first": "app.app_context().push()\nsession.add_all([])\n"
    "app.ensure_sync(use)()\n",
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("driver", ["asyncpg", "psycopg", "aiosqlite"])
def test_an_abandoned_session_is_closed_when_the_process_ends(
    driver: str, end: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    url = async_url(driver, request, tmp_path).render_as_string(hide_password=False)
    assert output_of(SET_UP + ENDS[end], URL=url) == "rolled back\n"


def test_a_call_after_the_loop_has_ended_is_told_what_ended_and_what_to_do() -> None:
    url = "sqlite+aiosqlite://"
    program = SET_UP + "with app.app_context():\n    app.ensure_sync(use)()\n"
    told = output_of(program, URL=url, LATE="yes")
    assert told.startswith("rolled back\n<function use at ")
    assert "the event loop of async views had ended" in told
    assert "after 'import flask_sqlalchemy_session.asyncio'" in told
    assert told.count("\n") == 2
