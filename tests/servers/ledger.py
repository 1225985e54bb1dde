"""The application that the servers serve: a ledger over PostgreSQL.

Every view marks its session, and complains in the log of any session that comes to it
with the marks of another. One teardown hook in a hundred raises.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from itertools import count
from typing import TYPE_CHECKING, Final
from uuid import uuid4

from flask import Flask, g, stream_with_context
from flask.globals import app_ctx
from sqlalchemy import Engine, create_engine, event, select, text
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from flask_sqlalchemy_session import FlaskScopedSession

from .entries import HUNG_UP, PLANNED, STRANGER, Entry

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy.engine.interfaces import Dialect

#: A leak of one connection for each thread or greenlet exhausts the pool.
POOL_SIZE: Final = int(os.environ.get("LEDGER_POOL_SIZE", "8"))
#: How sessions are released: by the library, or in ways that it improves on.
RELEASE: Final = os.environ.get("LEDGER_RELEASE", "library")


def make_engine(url: str) -> Engine:
    """Make an engine whose connections say which process made them."""
    engine = create_engine(url, pool_size=POOL_SIZE, max_overflow=0, pool_timeout=2)

    @event.listens_for(engine, "do_connect")
    def name_connection(
        dialect: Dialect, record: object, args: object, keywords: dict[str, str]
    ) -> None:
        keywords["application_name"] = f"ledger-{os.getpid()}"

    return engine


app = Flask("ledger")
engine = make_engine(os.environ["LEDGER_URL"])


def scope_by_id() -> int:
    """Tell contexts apart in the way that the control runs show to be wrong."""
    return id(app_ctx._get_current_object())  # type: ignore[attr-defined]  # Flask types the proxy as the context


session: scoped_session[Session]
if RELEASE == "hook":
    # As extensions do that rely on a teardown hook and on a context's id.
    session = scoped_session(sessionmaker(engine), scope_by_id)
else:
    session = FlaskScopedSession(sessionmaker(engine), app)
if RELEASE == "finaliser":
    # Leaves the library's second line alone: what is closed when `g` is dropped.
    del app.do_teardown_appcontext


late_uses = count(1)
teardowns = count(1)


@app.teardown_appcontext
def use_the_session_late(error: BaseException | None) -> None:
    """Use the session where the context ends, as a hook may."""
    if "mark" in g:
        check_mark()
        if next(late_uses) % 25 == 0:
            session.scalar(text("SELECT 1"))


if RELEASE == "hook":

    @app.teardown_appcontext
    def remove_session(error: BaseException | None) -> None:
        session.remove()


@app.teardown_appcontext
def fail_sometimes(error: BaseException | None) -> None:
    if next(teardowns) % 100 == 0:
        app.logger.warning(PLANNED)
        raise RuntimeError(PLANNED)


def complain_unless(own: bool) -> None:
    if not own:
        app.logger.error(STRANGER)


def check_mark() -> None:
    complain_unless(session.info.get("mark", g.mark) == g.mark)


@contextmanager
def marked_session() -> Iterator[None]:
    """Check that the session is new, mark it, and check that it stays ours."""
    real = session()
    complain_unless(
        not real.info
        and not real.in_transaction()
        and not real.identity_map
        and not real.new
    )
    g.mark = real.info["mark"] = uuid4().hex
    yield
    check_mark()
    complain_unless(session() is real)


@app.post("/entries/<key>")
def write(key: str) -> tuple[str, int]:
    with marked_session():
        session.add(Entry(key=key, author=g.mark))
        session.commit()
        # After the commit, a second transaction for the teardown to end.
        return session.get_one(Entry, key).author, 201


@app.post("/entries/<key>/fail")
def fail(key: str) -> str:
    with marked_session():
        session.add(Entry(key=key, author=g.mark))
        session.flush()
        raise LookupError("inside a transaction")


@app.get("/entries/<key>")
def read(key: str) -> tuple[str, int]:
    with marked_session():
        entry = session.get(Entry, key)
        return ("", 404) if entry is None else (entry.author, 200)


@app.get("/stream")
def stream() -> Iterator[str]:
    """Stream from the database, and from the view's own session before it."""
    with marked_session():
        session.scalar(select(Entry.key).limit(1))

    def lines() -> Iterator[str]:
        # Flask 3.1.2 and 3.1.3 give the body a new session, other versions the
        # view's: it is ours or nobody's.
        check_mark()
        session.info["mark"] = g.mark
        numbers = text("SELECT generate_series(1, 400)")
        try:
            for number in session.scalars(numbers).yield_per(20):
                yield f"{number:.<1000}\n"
                check_mark()
        except GeneratorExit:
            app.logger.warning(HUNG_UP)
            raise
        yield "end\n"

    return stream_with_context(lines())
