"""An application with a Celery worker, which the tests start as users do."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from celery import Celery, Task
from celery.signals import worker_process_init
from flask import Flask
from sqlalchemy import QueuePool, create_engine, event
from sqlalchemy.orm import sessionmaker

from flask_sqlalchemy_session import FlaskScopedSession, current_session
from tests.support import User

if TYPE_CHECKING:
    from sqlalchemy.engine.interfaces import DBAPIConnection
    from sqlalchemy.pool import ConnectionPoolEntry

directory = Path(os.environ["SHOP_DIRECTORY"])
engine = create_engine(f"sqlite:///{directory}/shop.sqlite3")
app = Flask("shop")
session = FlaskScopedSession(sessionmaker(engine), app)


class ContextTask(Task[Any, object]):
    def __call__(self, *args: Any, **kwargs: Any) -> object:
        with app.app_context():
            return self.run(*args, **kwargs)


celery = Celery("shop", task_cls=ContextTask)


@worker_process_init.connect
def leave_the_parent_its_connections(**_: object) -> None:
    engine.dispose(close=False)


# What follows is the tests' own.
@event.listens_for(engine, "connect")
def note_process(connection: DBAPIConnection, entry: ConnectionPoolEntry) -> None:
    entry.info["process"] = os.getpid()


with engine.connect():  # as a worker that reads something before it forks
    pass

messages = {
    "data_folder_in": str(directory),
    "data_folder_out": str(directory),
    "control_folder": str(directory / "control"),
    "polling_interval": 0.01,
}
celery.conf.update(
    broker_url="filesystem://",
    broker_transport_options=messages,
    result_backend=f"file://{directory}",
    worker_hijack_root_logger=False,
)


@celery.task
def enrol(name: str) -> tuple[int, int]:
    """Return this process, and the one that has connected for it."""
    with current_session.begin():
        current_session.add(User(name=name))
        return os.getpid(), current_session.connection().info["process"]


@celery.task
def fail(name: str) -> None:
    current_session.add(User(name=name))
    current_session.flush()
    raise LookupError(name)


@celery.task
def count_connections() -> int:
    """Return how many connections the tasks before it have left open in its process."""
    assert isinstance(engine.pool, QueuePool)
    return engine.pool.checkedout()
