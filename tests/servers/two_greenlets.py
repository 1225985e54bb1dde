"""Two greenlets, of which one waits in the database for the other."""

from __future__ import annotations

from gevent import monkey

monkey.patch_all()

import sys  # noqa: E402  # the patch comes first

import gevent  # noqa: E402
from flask import Flask  # noqa: E402
from sqlalchemy import create_engine, text  # noqa: E402
from sqlalchemy.orm import sessionmaker  # noqa: E402

from flask_sqlalchemy_session import FlaskScopedSession  # noqa: E402

app = Flask("two")
engine = create_engine(sys.argv[1])
session = FlaskScopedSession(sessionmaker(engine), app)
LOCK = text("SELECT pg_advisory_xact_lock(2)")


def wait() -> None:
    with app.app_context():
        session.execute(LOCK)  # a driver that does not cooperate stays here
        sys.stdout.write("acquired\n")


with app.app_context():
    session.execute(LOCK)
    waiter = gevent.spawn(wait)
    waiting = text(
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
    )
    with engine.connect() as connection:
        while connection.scalar(waiting) == 0:
            gevent.sleep()
    sys.stdout.write("waited\n")
    sys.stdout.write("released\n")
    session.rollback()
    waiter.join()
engine.dispose()
