"""APScheduler: each job opens a context, and so has a session of its own."""

from __future__ import annotations

from queue import Queue
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from flask_sqlalchemy_session import current_session
from tests.support import OopsError, User

pytest.importorskip("apscheduler")

from apscheduler.events import (
    EVENT_JOB_ERROR,
    EVENT_JOB_EXECUTED,
    JobExecutionEvent,
)
from apscheduler.schedulers.background import BackgroundScheduler

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flask import Flask
    from sqlalchemy import Engine

    from tests.support import Held


def add_jobs(app: Flask, scheduler: BackgroundScheduler) -> None:
    @scheduler.scheduled_job("interval", seconds=0.05)
    def enrol() -> None:
        with app.app_context(), current_session.begin():
            current_session.add(User(name="ann"))


@pytest.fixture
def done() -> Queue[JobExecutionEvent]:
    """The jobs that were run, each with the error that it raised."""
    return Queue()


@pytest.fixture
def scheduler(done: Queue[JobExecutionEvent]) -> Iterator[BackgroundScheduler]:
    scheduler = BackgroundScheduler(timezone="UTC")
    scheduler.add_listener(done.put, EVENT_JOB_EXECUTED | EVENT_JOB_ERROR)
    scheduler.start()
    yield scheduler
    if scheduler.running:
        scheduler.shutdown()


def names(engine: Engine) -> list[str]:
    with Session(engine) as session:
        return list(session.scalars(select(User.name)))


@pytest.mark.usefixtures("session")
class TestJobs:
    def test_each_run_writes(
        self,
        app: Flask,
        scheduler: BackgroundScheduler,
        done: Queue[JobExecutionEvent],
        engine: Engine,
        held: Held,
    ) -> None:
        add_jobs(app, scheduler)
        for _ in range(3):
            assert done.get().exception is None
        scheduler.shutdown()
        assert held.count == 0
        assert names(engine)[:3] == ["ann", "ann", "ann"]

    def test_a_job_that_fails_leaves_nothing_to_the_next(
        self,
        app: Flask,
        scheduler: BackgroundScheduler,
        done: Queue[JobExecutionEvent],
        engine: Engine,
        held: Held,
    ) -> None:
        def fail() -> None:
            with app.app_context():
                assert not current_session.in_transaction()
                current_session.add(User(name="ann"))
                current_session.flush()
                raise OopsError

        for _ in range(3):
            scheduler.add_job(fail)
            assert isinstance(done.get().exception, OopsError)
        assert held.count == 0
        assert names(engine) == []
