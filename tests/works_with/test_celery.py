"""Celery: each task has a context, and so a session, of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from flask_sqlalchemy_session import current_session
from tests.support import OopsError, User

pytest.importorskip("celery")

from celery import Celery, Task
from celery.contrib.testing.worker import start_worker

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

    from flask import Flask
    from sqlalchemy import Engine

    from flask_sqlalchemy_session import FlaskScopedSession
    from tests.support import Held

    Tasks = tuple[Task[[str], int], Task[[str], None]]

ROOT = Path(__file__).parents[2]
SHOP = "tests.works_with.celery_shop"


def make_celery(app: Flask, **settings: object) -> Celery:
    class ContextTask(Task[Any, object]):
        def __call__(self, *args: Any, **kwargs: Any) -> object:
            with app.app_context():
                return self.run(*args, **kwargs)

    celery: Celery = Celery(app.name, task_cls=ContextTask)
    celery.conf.update(settings)
    return celery


def add_tasks(celery: Celery) -> Tasks:
    @celery.task(shared=False)
    def enrol(name: str) -> int:
        user = User(name=name)
        with current_session.begin():
            current_session.add(user)
        return user.id

    @celery.task(shared=False)
    def fail(name: str) -> None:
        current_session.add(User(name=name))
        current_session.flush()
        raise OopsError

    return enrol, fail


@contextmanager
def worker_of_two_processes() -> Iterator[None]:
    command = f"celery -A {SHOP}:celery worker --pool prefork --concurrency 2 -l ERROR"
    alone = "--without-gossip --without-mingle --without-heartbeat"
    worker = subprocess.Popen(  # noqa: S603  # Celery's own command
        [sys.executable, "-m", *command.split(), *alone.split()], cwd=ROOT
    )
    try:
        yield
    finally:
        worker.terminate()
        status = worker.wait()
    assert status == 0


def names(engine: Engine) -> list[str]:
    with Session(engine) as session:
        return list(session.scalars(select(User.name)))


class TestEager:
    @pytest.fixture
    def tasks(
        self, app: Flask, session: FlaskScopedSession[Session], held: Held
    ) -> Iterator[Tasks]:
        celery = make_celery(app, task_always_eager=True, task_eager_propagates=True)
        yield add_tasks(celery)
        assert held.count == 0

    def test_a_task_writes(self, tasks: Tasks, engine: Engine) -> None:
        enrol, _ = tasks
        assert enrol.delay("ann").get() == 1
        assert names(engine) == ["ann"]

    def test_a_task_leaves_the_session_of_its_request_alone(
        self,
        app: Flask,
        session: FlaskScopedSession[Session],
        tasks: Tasks,
        ann: User,
        engine: Engine,
    ) -> None:
        enrol, _ = tasks

        @app.post("/")
        def view() -> str:
            mine = session()
            mine.get_one(User, ann.id).name = "anna"
            mine.commit()
            enrol.delay("bob")
            assert session() is mine
            return session.get_one(User, ann.id).name

        assert app.test_client().post("/").text == "anna"
        assert names(engine) == ["anna", "bob"]

    def test_a_task_that_fails_leaves_nothing(
        self, tasks: Tasks, engine: Engine, held: Held
    ) -> None:
        _, fail = tasks
        with pytest.raises(OopsError):
            fail.delay("ann")
        assert held.count == 0
        assert names(engine) == []


@pytest.mark.usefixtures("logging_restored")
class TestAWorkerInAThread:
    @pytest.fixture
    def tasks(
        self, app: Flask, session: FlaskScopedSession[Session], held: Held
    ) -> Iterator[Tasks]:
        celery = make_celery(
            app,
            broker_url="memory://",
            broker_transport_options={"polling_interval": 0.01},
            result_backend="cache+memory://",
            worker_hijack_root_logger=False,
        )
        tasks = add_tasks(celery)
        with start_worker(celery, perform_ping_check=False):
            yield tasks
        assert held.count == 0

    def test_tasks_write_and_fail_in_turn(self, tasks: Tasks, engine: Engine) -> None:
        enrol, fail = tasks
        for name in ("ann", "bob"):
            with pytest.raises(OopsError):
                fail.delay(name).get(timeout=60)
            assert enrol.delay(name).get(timeout=60)
        assert names(engine) == ["ann", "bob"]


class TestForkedWorkers:
    @pytest.fixture
    def shop(
        self, tmp_path: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
    ) -> Iterator[ModuleType]:
        """The module of an application, whose directory is the test's."""
        monkeypatch.setenv("SHOP_DIRECTORY", str(tmp_path))
        module = import_module(SHOP)
        yield module
        module.engine.dispose()
        del sys.modules[SHOP]

    def test_tasks_write_and_fail_in_each_process(
        self, shop: ModuleType, engine: Engine
    ) -> None:
        # Before the worker is there: it may read a file that is not yet written whole.
        enrolled = [shop.enrol.delay(f"user {n}") for n in range(8)]
        failed = [shop.fail.delay("bob") for _ in range(8)]
        asked = [shop.count_connections.delay() for _ in range(8)]
        with worker_of_two_processes():
            processes = [result.get(timeout=60) for result in enrolled]
            for result in failed:
                with pytest.raises(LookupError):
                    result.get(timeout=60)
            held = [result.get(timeout=60) for result in asked]
        for process, connected in processes:
            assert process == connected != os.getpid()
        assert held == [0] * 8
        assert sorted(names(engine)) == [f"user {n}" for n in range(8)]
