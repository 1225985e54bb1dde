"""Huey: each task opens a context, and so has a session of its own."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from flask_sqlalchemy_session import current_session
from tests.support import OopsError, User

pytest.importorskip("huey")

from huey import Huey, MemoryHuey, SqliteHuey
from huey.exceptions import TaskException

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from flask import Flask
    from huey.api import Result
    from sqlalchemy import Engine

    from flask_sqlalchemy_session import FlaskScopedSession
    from tests.support import Held


def add_tasks(app: Flask, huey: Huey) -> Callable[[str], Result]:
    @huey.task()
    def enrol(name: str) -> int:
        with app.app_context():
            user = User(name=name)
            with current_session.begin():
                current_session.add(user)
            return user.id

    return enrol


def add_failing_task(app: Flask, huey: Huey) -> Callable[[str], Result]:
    @huey.task()
    def fail(name: str) -> None:
        with app.app_context():
            current_session.add(User(name=name))
            current_session.flush()
            raise OopsError

    return fail


def names(engine: Engine) -> list[str]:
    with Session(engine) as session:
        return list(session.scalars(select(User.name).order_by(User.name)))


@pytest.fixture
def consumed(tmp_path: Path) -> Iterator[Huey]:
    """A queue in a file, with a consumer of two threads."""
    huey = SqliteHuey(filename=str(tmp_path / "huey.sqlite3"))
    consumer = huey.create_consumer(
        workers=2, periodic=False, initial_delay=0.01, max_delay=0.05
    )
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    handlers = [signal.getsignal(number) for number in signals]
    consumer.start()
    yield huey
    consumer.stop(graceful=True)
    huey.storage.close()
    for number, handler in zip(signals, handlers, strict=True):
        signal.signal(number, handler)


@pytest.mark.usefixtures("session")
class TestAConsumer:
    def test_tasks_write_and_fail_in_turn(
        self, app: Flask, consumed: Huey, engine: Engine, held: Held
    ) -> None:
        enrol, fail = add_tasks(app, consumed), add_failing_task(app, consumed)
        for name in ("ann", "bob"):
            failed = fail(name)
            assert enrol(name).get(blocking=True, timeout=60)
            with pytest.raises(TaskException, match="OopsError"):
                failed.get(blocking=True, timeout=60)
        assert held.count == 0
        assert names(engine) == ["ann", "bob"]


class TestAtOnce:
    def test_a_task_leaves_the_session_of_its_request_alone(
        self,
        app: Flask,
        session: FlaskScopedSession[Session],
        engine: Engine,
        held: Held,
    ) -> None:
        enrol = add_tasks(app, MemoryHuey(immediate=True))

        @app.post("/")
        def view() -> str:
            mine = session()
            current_session.info["of"] = "the request"
            enrol("ann")
            assert session() is mine
            assert current_session.info == {"of": "the request"}
            return ""

        assert app.test_client().post("/").status_code == 200
        assert held.count == 0
        assert names(engine) == ["ann"]
