"""No window: an interrupt at any line of the package leaves nothing open.

Each line that the package executes while a session is used, removed and released is
interrupted once, without the cyclic collector.
"""

from __future__ import annotations

import gc
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias
from weakref import WeakSet

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session, sessionmaker

import flask_sqlalchemy_session
from flask_sqlalchemy_session import FlaskScopedSession, current_session
from tests.conftest import memory_engine
from tests.support import Held, OopsError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from flask import Flask

    Scenario: TypeAlias = Callable[[Flask, FlaskScopedSession[Session]], None]

# The core's modules, without the folders beside them.
PACKAGE = f"{Path(flask_sqlalchemy_session.__file__).parent}/"
CORE = f"{PACKAGE}_"
SELECT_1 = text("SELECT 1")

pytestmark = pytest.mark.usefixtures("no_collector")


class Interrupter:
    """Raises at the n-th line of the package's that is executed, or only counts."""

    def __init__(self, at: int, error: type[BaseException], files: str = CORE) -> None:
        self.at = at
        self.error = error
        self.files = files
        self.lines = 0
        self.where = ""

    def trace(
        self, frame: FrameType, kind: str, _: object
    ) -> Callable[[FrameType, str, object], Any] | None:
        if not frame.f_code.co_filename.startswith(self.files):
            return None
        if kind == "line":
            self.lines += 1
            if self.lines == self.at:
                name = frame.f_code.co_filename.removeprefix(PACKAGE)
                self.where = f"{name}:{frame.f_lineno} {frame.f_code.co_name}"
                raise self.error
        return self.trace


def run(interrupter: Interrupter, scenario: Callable[[], None]) -> BaseException | None:
    """Run a scenario in a thread, and so in context variables, of its own.

    What a trace function raises in an `except` clause can leave the handled error the
    thread's current one, from Python 3.11 on.
    """

    def traced() -> None:
        sys.settrace(interrupter.trace)
        try:
            scenario()
        finally:
            sys.settrace(None)

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(traced).exception()


def a_context(app: Flask, session: FlaskScopedSession[Session]) -> None:
    with app.app_context():
        current_session.execute(SELECT_1)
        session.execute(SELECT_1)


def a_request(app: Flask, session: FlaskScopedSession[Session]) -> None:
    app.test_client().get("/")


def a_removal(app: Flask, session: FlaskScopedSession[Session]) -> None:
    with app.app_context():
        session.execute(SELECT_1)
        session.remove()
        session.execute(SELECT_1)


def a_failing_view(app: Flask, session: FlaskScopedSession[Session]) -> None:
    with app.app_context():
        session.execute(SELECT_1)
        raise OopsError


def a_late_use(app: Flask, session: FlaskScopedSession[Session]) -> None:
    with app.app_context():
        session.execute(SELECT_1)
        variables = copy_context()
    variables.run(session.execute, SELECT_1)


class Clears(FlaskScopedSession[Session]):
    def remove(self) -> None:
        self.registry.clear()


class RaisesBefore(FlaskScopedSession[Session]):
    def remove(self) -> None:
        raise OopsError


class RaisesAfter(FlaskScopedSession[Session]):
    def remove(self) -> None:
        super().remove()
        raise OopsError


class DoesNothing(FlaskScopedSession[Session]):
    def remove(self) -> None:
        pass


SCENARIOS: list[Scenario] = [
    a_context,
    a_request,
    a_removal,
    a_failing_view,
    a_late_use,
]
CLASSES: list[type[FlaskScopedSession[Session]]] = [
    FlaskScopedSession[Session],
    Clears,
    RaisesBefore,
    RaisesAfter,
    DoesNothing,
]
CASES = [
    *((scenario, FlaskScopedSession) for scenario in SCENARIOS),
    *((a_context, class_) for class_ in CLASSES[1:]),
]


@pytest.mark.leaks
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize(
    ("scenario", "class_"),
    CASES,
    ids=lambda each: getattr(each, "__name__", None),
)
def test_an_interrupt_at_any_line_leaves_nothing_that_only_the_collector_ends(
    scenario: Scenario,
    class_: type[FlaskScopedSession[Session]],
    error: type[BaseException],
    app: Flask,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A finaliser is interrupted too, and what it raises nobody can catch.
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)
    engine = memory_engine()
    held = Held(engine)
    factory, made = sessionmaker(engine), WeakSet[Session]()

    def make() -> Session:
        made.add(one := factory())
        return one

    session = class_(make, app)
    app.testing = True

    @app.get("/")
    def index() -> str:
        session.execute(SELECT_1)
        return ""

    def work() -> None:
        scenario(app, session)

    run(Interrupter(0, error), work)  # what is made once, as the subclasses are
    points = Interrupter(0, error)
    run(points, work)
    assert points.lines > 20
    kept: list[str] = []
    with warnings.catch_warnings():
        # A session that was interrupted before a teardown is closed by the safety net.
        warnings.simplefilter("ignore", ResourceWarning)
        for at in range(1, points.lines + 1):
            interrupter = Interrupter(at, error)
            raised = run(interrupter, work)
            del raised
            if held.count:
                kept.append(interrupter.where)
                gc.collect()
            with app.app_context():  # the next one has its own session
                try:
                    assert not session.in_transaction()
                    session.execute(SELECT_1)
                finally:
                    session.registry.clear()
            assert held.count == 0
    gc.collect()
    if sys.version_info < (3, 11):
        # It begins a `try` in a step of its own, in which nothing catches an interrupt.
        assert {each.split()[-1] for each in kept} <= {"pop", "__del__"}
        assert len(kept) <= 2
    else:
        assert not kept
        assert not made  # nor is anything kept from the collector
    engine.dispose()
