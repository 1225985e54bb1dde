"""What is measured of each contestant: the rows of the table."""

from __future__ import annotations

import contextvars
import subprocess
import sys
import tracemalloc
from dataclasses import dataclass
from functools import partial
from timeit import Timer
from typing import TYPE_CHECKING

from werkzeug.test import EnvironBuilder, run_wsgi_app

from .contestants import EMPTY_HOOK, FLOOR, OURS, Contestant

if TYPE_CHECKING:
    from collections.abc import Callable

    from flask import Flask
    from flask.ctx import AppContext

CALL = "`session()`"
CURRENT = "the session behind `current_session`"
SESSION_ATTRIBUTE = "`session.is_active`"
CURRENT_ATTRIBUTE = "`current_session.is_active`"
PROXY_ATTRIBUTE = "`session.proxy.is_active`"
USED = "a context that uses its session once"
UNTOUCHED = "a context that never does"
SQLITE = "a request that reads a row, SQLite"
POSTGRESQL = "a request that reads a row, PostgreSQL"
MEMORY = "memory of an open context with its session"
IMPORT = "import, with Flask and SQLAlchemy's ORM"

ROWS = [
    CALL,
    CURRENT,
    SESSION_ATTRIBUTE,
    CURRENT_ATTRIBUTE,
    PROXY_ATTRIBUTE,
    USED,
    UNTOUCHED,
    SQLITE,
    POSTGRESQL,
    MEMORY,
    IMPORT,
]

# In each, what the library is reached by. Its peers have one way, which they repeat.
_REACHED = {CALL: "session()", CURRENT: "current_session._get_current_object()"}
_ACCESSED = {
    SESSION_ATTRIBUTE: "session",
    CURRENT_ATTRIBUTE: "current_session",
    PROXY_ATTRIBUTE: "proxy",
}


@dataclass(frozen=True)
class Case:
    """One cell of the table."""

    row: str
    contestant: str
    measure: Callable[[int], float]
    """Measures so many repetitions, in seconds together, or in bytes for each."""

    @property
    def name(self) -> str:
        return name(self.row, self.contestant)


def name(row: str, contestant: str) -> str:
    """What a cell's measurements are called in a file."""
    return f"{row} | {contestant}"


def timed_cases(
    on_sqlite: list[Contestant], on_postgresql: list[Contestant]
) -> list[Case]:
    """Return what is timed in this process."""
    cases = []
    for one in on_sqlite:
        cases += _in_context(one)
        if one.session:
            cases.append(_of_contexts(USED, one, one.use or one.session))
        cases.append(_of_contexts(UNTOUCHED, one, "pass"))
    for row, those in ((SQLITE, on_sqlite), (POSTGRESQL, on_postgresql)):
        for one in those:
            if one.name != EMPTY_HOOK:
                cases.append(_of_requests(row, one))
    return cases


def _in_context(one: Contestant) -> list[Case]:
    if one.session is None or one.accessor is None:
        return []
    ours = one.name == OURS
    sources = {
        row: reached if ours else one.session for row, reached in _REACHED.items()
    } | {
        row: f"{accessor if ours else one.accessor}.is_active"
        for row, accessor in _ACCESSED.items()
    }
    return [
        Case(
            row,
            one.name,
            partial(_time_in_context, one, Timer(source, globals=one.names)),
        )
        for row, source in sources.items()
    ]


def _time_in_context(one: Contestant, timer: Timer, repetitions: int) -> float:
    with one.app.app_context():
        timer.timeit(1)  # makes the session
        return timer.timeit(repetitions)


def _of_contexts(row: str, one: Contestant, body: str) -> Case:
    timer = Timer(
        f"with app.app_context():\n    {body}", globals={**one.names, "app": one.app}
    )
    return Case(row, one.name, timer.timeit)


def _of_requests(row: str, one: Contestant) -> Case:
    _, status, _ = run_wsgi_app(one.app, _environ())
    assert status == "200 OK", f"{one.name}: {status}"
    timer = Timer(
        "serve(app, environ)",
        globals={"serve": _serve, "app": one.app, "environ": _environ()},
    )
    return Case(row, one.name, timer.timeit)


def _environ() -> dict[str, object]:
    return dict(EnvironBuilder("/").get_environ())


def _serve(app: Flask, environ: dict[str, object]) -> None:
    """Serve one request as a WSGI server does, body and `close` included."""
    body = app(environ.copy(), _start_response)
    for _ in body:
        pass
    close: Callable[[], None] | None = getattr(body, "close", None)
    if close is not None:
        close()


def _write(_: bytes) -> None:
    pass


def _start_response(*_: object) -> Callable[[bytes], None]:
    return _write


def memory_cases(contestants: list[Contestant]) -> list[Case]:
    """Return what is weighed: open contexts, each with a session of its own."""
    return [
        Case(MEMORY, one.name, partial(_weigh, one))
        for one in contestants
        if one.session and one.own_session
    ]


def _weigh(one: Contestant, repetitions: int) -> float:
    session = "keep.append(Session(engine))" if one.name == FLOOR else str(one.session)
    code = compile(session, one.name, "exec")
    keep: list[object] = []
    opened: list[tuple[contextvars.Context, AppContext]] = []

    def enter() -> AppContext:
        context = one.app.app_context()
        context.push()
        exec(code, {**one.names, "keep": keep})  # noqa: S102  # the contestants' own source
        return context

    def leave(context: AppContext) -> None:
        context.pop()

    def open_contexts(count: int) -> None:
        for _ in range(count):
            variables = contextvars.Context()
            opened.append((variables, variables.run(enter)))

    open_contexts(10)  # what is made once
    tracemalloc.start()
    open_contexts(repetitions)
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    while opened:
        variables, context = opened.pop()
        variables.run(leave, context)
    return size / repetitions


def import_cases(contestants: list[Contestant]) -> list[Case]:
    """Return what is imported, each time by a new interpreter."""
    return [
        Case(IMPORT, one.name, partial(_time_import, one.imports))
        for one in contestants
        if one.imports != "pass" or one.name == FLOOR
    ]


def _time_import(imports: str, repetitions: int) -> float:
    program = (
        "from time import perf_counter\n"
        "before = perf_counter()\n"
        f"import flask, sqlalchemy.orm\n{imports}\n"
        "print(perf_counter() - before)\n"
    )
    return sum(
        float(
            subprocess.run(  # noqa: S603  # our own program
                [sys.executable, "-c", program],
                check=True,
                capture_output=True,
                text=True,
            ).stdout
        )
        for _ in range(repetitions)
    )
