"""One process of measurements, written to a file of pyperf's.

pyperf's own runner measures one case after the other, each in processes of its own: a
machine whose speed drifts meanwhile shows its drift as a difference. Here every round
takes one short sample of each case, in a random order, so that what disturbs disturbs
all alike, and samples of the same round can be compared.
"""

from __future__ import annotations

import argparse
import random
import tracemalloc
from collections import defaultdict
from contextvars import Context
from dataclasses import dataclass
from functools import partial
from threading import Barrier, Thread
from time import perf_counter
from timeit import Timer
from typing import TYPE_CHECKING

import pyperf
from flask import Flask
from sqlalchemy import create_engine
from sqlalchemy.orm import sessionmaker
from werkzeug.test import EnvironBuilder, run_wsgi_app

from flask_sqlalchemy_session import FlaskScopedSession

from .contestants import BY_HAND, BY_THREAD, CONTESTANTS, OURS, Contestant

if TYPE_CHECKING:
    from collections.abc import Callable

    from flask.ctx import AppContext

CALL = "`session()`"
CURRENT = "`current_session.is_active`"
PROXY = "`session.proxy.is_active`"
USED = "a context that uses `session()` once"
USED_CURRENT = "a context that uses `current_session` once"
UNTOUCHED = "a context that uses none"
SQLITE = "a request that reads a row, SQLite"
POSTGRESQL = "a request that reads a row, PostgreSQL"
MEMORY = "memory of an open context with its session"
ROWS = [
    *(CALL, CURRENT, PROXY, USED, USED_CURRENT),
    *(UNTOUCHED, SQLITE, POSTGRESQL, MEMORY),
]

GROWN = {CALL: "session()", USED: "with app.app_context(): session()"}
NESTED = "contexts nested"
NAMES = "names on one application"
ALIVE = "contexts alive at once"
THREADS = "threads"
CURVES = {
    NESTED: (1, 10, 100),
    NAMES: (1, 4, 16),
    ALIVE: (1, 100, 10_000),
    THREADS: (1, 4, 16),
}

SAMPLE = 0.002
"""The seconds that each sample takes at least. Many short ones do better than few long
ones: what disturbs lasts longer than any of them."""


@dataclass(frozen=True)
class Case:
    """One cell of the table."""

    name: str
    measure: Callable[[int], float]
    """Measures so many repetitions, in seconds together."""


def name(row: str, contestant: str) -> str:
    """What a cell's measurements are called in a file."""
    return f"{row} | {contestant}"


def timed_cases(sqlite_url: str, postgresql_url: str) -> list[list[Case]]:
    """Return what is timed, row by row."""
    rows: dict[str, list[Case]] = defaultdict(list)
    for one in (make(sqlite_url) for make in CONTESTANTS):
        in_context = {CALL: one.session, CURRENT: f"{one.accessor}.is_active"}
        contexts = {
            USED: f"    {one.session}",
            USED_CURRENT: f"    {one.accessor}.is_active",
            UNTOUCHED: "    pass",
        }
        if one.name == OURS:
            in_context[PROXY] = "proxy.is_active"
        elif one.name == BY_HAND:
            contexts[USED] = "    with Session(engine): pass"
            contexts[USED_CURRENT] = "    with Session(engine) as s: s.is_active"
        if one.session is None:
            in_context.clear()
            contexts = {UNTOUCHED: contexts[UNTOUCHED]}
        for row, source in in_context.items():
            timer = Timer(str(source), globals=one.names)
            measure: Callable[[int], float] = partial(_in_context, one.app, timer)
            rows[row].append(Case(name(row, one.name), measure))
        for row, body in contexts.items():
            names = {**one.names, "app": one.app}
            timer = Timer(f"with app.app_context():\n{body}", globals=names)
            rows[row].append(Case(name(row, one.name), timer.timeit))
        if one.session:
            rows[SQLITE].append(_requests(SQLITE, one))
    for make in CONTESTANTS:
        if (one := make(postgresql_url)).session:
            rows[POSTGRESQL].append(_requests(POSTGRESQL, one))
    # A peer has one way to its session, which all of ours are compared with.
    rows[CURRENT] += rows.pop(PROXY)
    return list(rows.values())


def _in_context(app: Flask, timer: Timer, repetitions: int) -> float:
    with app.app_context():
        timer.timeit(1)  # makes the session
        return timer.timeit(repetitions)


def _requests(row: str, one: Contestant) -> Case:
    environ = dict(EnvironBuilder("/").get_environ())
    assert run_wsgi_app(one.app, environ)[1] == "200 OK", one.name
    names = {"app": one.app, "environ": environ, "start": lambda *_: None}
    # As a WSGI server does, body and `close` included.
    serve = "body = app(environ.copy(), start)\nfor _ in body: pass\nbody.close()"
    return Case(name(row, one.name), Timer(serve, globals=names).timeit)


def take(rows: list[list[Case]], rounds: int) -> dict[str, list[float]]:
    """Time every case once a round, each repeated so often that a sample is long."""
    repetitions = {case.name: _repetitions(case) for row in rows for case in row}
    samples: dict[str, list[float]] = defaultdict(list)
    for _ in range(rounds):
        for row in rows:
            for case in random.sample(row, len(row)):
                count = repetitions[case.name]
                samples[case.name].append(case.measure(count) / count)
    return samples


def _repetitions(case: Case) -> int:
    # The least of some, the first of which is cold: with fewer repetitions than the
    # others have, a contestant would look slower.
    count = 1
    while (seconds := min(case.measure(count) for _ in range(4))) < SAMPLE:
        count = max(count * 2, int(count * SAMPLE / max(seconds, 1e-9)))
    return count


def weigh(one: Contestant, contexts: int = 200) -> float:
    """Return the bytes of each context that is open with a session of its own."""
    session = "keep.append(Session(engine))" if one.name == BY_HAND else one.session
    code = compile(str(session), one.name, "exec")
    names = {**one.names, "keep": []}

    def enter() -> AppContext:
        context = one.app.app_context()
        context.push()
        exec(code, names)  # noqa: S102  # the contestants' own source
        return context

    def open_contexts(count: int) -> list[tuple[Context, AppContext]]:
        all_variables = [Context() for _ in range(count)]
        return [(variables, variables.run(enter)) for variables in all_variables]

    opened = open_contexts(10)  # what is made once
    tracemalloc.start()
    opened += open_contexts(contexts)
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    while opened:
        variables, context = opened.pop()
        variables.run(context.pop)
    return size / contexts


def grow(curve: str, size: int, source: str, seconds: float) -> float:
    """Time what is used with so much else there, by all threads together."""
    app = Flask(__name__)
    sessions = [
        FlaskScopedSession(sessionmaker(create_engine("sqlite://")), app, name=str(i))
        for i in range(size if curve == NAMES else 1)
    ]

    def enter() -> AppContext:
        context = app.app_context()
        context.push()
        for session in sessions:
            session()
        return context

    threads = size if curve == THREADS else 1
    in_variables = [Context() for _ in range(size if curve == ALIVE else threads)]
    opened = [
        (variables, variables.run(enter))
        for _ in range(size if curve == NESTED else 1)
        for variables in in_variables
    ]
    timer = Timer(source, globals={"app": app, "session": sessions[0]})
    probe = in_variables[0].run(timer.timeit, 100) / 100
    share = max(1, int(seconds / probe / threads))
    barrier = Barrier(threads + 1)

    def run(variables: Context) -> None:
        barrier.wait()
        variables.run(timer.timeit, share)

    workers = [Thread(target=run, args=(own,)) for own in in_variables[:threads]]
    for worker in workers:
        worker.start()
    barrier.wait()
    before = perf_counter()
    for worker in workers:
        worker.join()
    taken = perf_counter() - before
    while opened:
        variables, context = opened.pop()
        variables.run(context.pop)
    return taken / share / threads


def main() -> None:
    """Measure once, and write the samples."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sqlite_url")
    parser.add_argument("postgresql_url")
    parser.add_argument("rounds", type=int)
    parser.add_argument("output")
    arguments = parser.parse_args()
    rows = timed_cases(arguments.sqlite_url, arguments.postgresql_url)
    samples = take(rows, arguments.rounds)
    for make in CONTESTANTS:
        one = make(arguments.sqlite_url)
        # Contexts of one thread share its session, and so have no memory to compare.
        if one.session and one.name != BY_THREAD:
            samples[name(MEMORY, one.name)] = [weigh(one)]
    for row, source in GROWN.items():
        for curve, sizes in CURVES.items():
            for size in sizes:
                seconds = SAMPLE * arguments.rounds
                samples[f"{row} | {size} {curve}"] = [
                    grow(curve, size, source, seconds)
                ]
    pyperf.BenchmarkSuite(
        [
            pyperf.Benchmark([pyperf.Run(values, metadata={"name": case})])
            for case, values in samples.items()
        ]
    ).dump(arguments.output, replace=True)


if __name__ == "__main__":
    main()
