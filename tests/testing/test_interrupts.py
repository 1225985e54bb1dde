"""`isolate`: an interrupt at any line of it leaves the object and the engine free."""

from __future__ import annotations

import gc
import sys
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import QueuePool, event, func, select
from sqlalchemy.orm import sessionmaker

from flask_sqlalchemy_session import FlaskScopedSession
from flask_sqlalchemy_session.testing import isolate
from tests.scope.test_interrupts import PACKAGE, Interrupter, run
from tests.support import User, first_of, many_connections

if TYPE_CHECKING:
    from flask import Flask
    from sqlalchemy import Engine


@many_connections
@pytest.mark.leaks
@pytest.mark.skipif(
    sys.version_info < (3, 11), reason="it begins a `try` in a step of its own"
)
@pytest.mark.filterwarnings("ignore:A session:ResourceWarning")
def test_an_interrupt_at_any_line_leaves_the_object_and_the_engine_free(
    app: Flask, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The collector's, where it finalises a pooled connection, nobody can catch.
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)
    checkouts: list[object] = []
    event.listen(engine, "checkout", lambda *_: checkouts.append(None))
    session, pool = FlaskScopedSession(sessionmaker(engine), app), engine.pool
    assert isinstance(pool, QueuePool)

    def use() -> None:
        with isolate(session), app.app_context():
            session.add(User(name="ann"))
            session.commit()
            session.scalars(select(User)).all()

    def interrupt(at: int) -> Interrupter:
        interrupter = Interrupter(at, KeyboardInterrupt, f"{PACKAGE}testing/")
        error = run(interrupter, use)
        if error:  # from 3.2 on Flask tells the errors of a teardown in groups
            error = first_of(error)
        assert isinstance(error, KeyboardInterrupt) == bool(at), interrupter.where
        return interrupter

    interrupt(0)  # what is done once, as listening to every engine is
    lines = interrupt(0).lines
    assert lines > 100
    for at in range(1, lines + 1):
        where = interrupt(at).where
        gc.collect()  # the error's cycles may hold a connection
        assert engine.pool is pool, where
        checkouts.clear()
        with engine.connect() as connection:
            assert connection.scalar(select(func.count()).select_from(User)) == 0
        assert checkouts
        assert pool.checkedout() == 0, where
        with isolate(session):  # which refuses an object that is isolated already
            pass
