"""One process of measurements, written to a file of pyperf's.

pyperf's own runner measures one case after the other, each in processes of its own: a
machine whose speed drifts meanwhile shows its drift as a difference. Here every round
takes one short sample of each case, in a random order, so that what disturbs disturbs
all alike, and samples of the same round can be compared.
"""

from __future__ import annotations

import random
import sys
import tracemalloc
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from threading import Barrier
from time import perf_counter
from timeit import Timer
from typing import TYPE_CHECKING, TypeAlias

import pyperf
from flask import Flask
from sqlalchemy import create_engine
from sqlalchemy.orm import sessionmaker
from werkzeug.test import EnvironBuilder, run_wsgi_app

from flask_sqlalchemy_session import FlaskScopedSession

from .contestants import BY_HAND, BY_THREAD, CONTESTANTS, EMPTY_HOOK, OURS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    # Takes so many repetitions, and returns their seconds together.
    Measure: TypeAlias = Callable[[int], float]

UNTOUCHED = "a context that uses none"
SQLITE = "a request that reads a row, SQLite"
POSTGRESQL = "a request that reads a row, PostgreSQL"
MEMORY = "memory of an open context with its session"
GROWN = {
    "`session()`": "session()",
    "a context that uses `session()` once": "with app.app_context(): session()",
}
NAMES = "names on one application"
ALIVE = "contexts alive at once"
THREADS = "threads"
CURVES = {NAMES: (1, 4, 16), ALIVE: (1, 100, 10_000), THREADS: (1, 4, 16)}

SAMPLE = 0.002
"""The seconds that each sample takes at least. Many short ones do better than few long
ones: what disturbs lasts longer than any of them."""


def cell(row: str, column: str) -> str:
    """What the measurements of a table's cell are called in a file."""
    return f"{row} | {column}"


def amount(benchmark: pyperf.Benchmark) -> str:
    """Return the median as it is shown."""
    return benchmark.format_value(benchmark.median())


def timed(name: str, sqlite_url: str, postgresql_url: str) -> dict[str, Measure]:
    """Return what is timed of one contestant, row by row."""
    contestant = CONTESTANTS[name]
    app, names = contestant.serve(sqlite_url)
    session, accessor = contestant.session, f"{contestant.accessor}.is_active"

    def in_context(source: str) -> Measure:
        timer = Timer(source, globals=names)

        def measure(repetitions: int) -> float:
            with app.app_context():
                timer.timeit(1)  # makes the session
                return timer.timeit(repetitions)

        return measure

    def context(source: str) -> Measure:
        return Timer(f"with app.app_context():\n  {source}", globals=names).timeit

    untouched = {UNTOUCHED: context("pass")}
    if name == EMPTY_HOOK:
        return untouched
    # A peer has one way to its session, which each of ours is compared with.
    proxy = "proxy.is_active" if name == OURS else accessor
    reached = {
        "`session()`": in_context(session),
        "`current_session.is_active`": in_context(accessor),
        "`session.proxy.is_active`": in_context(proxy),
    }
    use = contestant.block.format
    return {
        **(reached if name != BY_HAND else {}),
        "a context that uses `session()` once": context(use(session)),
        "a context that uses `current_session` once": context(use(accessor)),
        **untouched,
        SQLITE: _request(app),
        POSTGRESQL: _request(contestant.serve(postgresql_url)[0]),
    }


def _request(app: Flask) -> Measure:
    environ = dict(EnvironBuilder("/").get_environ())
    assert run_wsgi_app(app, environ)[1] == "200 OK"
    names = {"app": app, "environ": environ, "start": lambda *_: None}
    # As a WSGI server does, body and `close` included.
    serve = "body = app(environ.copy(), start)\nfor _ in body: pass\nbody.close()"
    return Timer(serve, globals=names).timeit


def take(rows: list[dict[str, Measure]], rounds: int) -> dict[str, list[float]]:
    """Time every case once a round, each repeated so often that a sample is long."""
    repetitions = {name: _repetitions(row[name]) for row in rows for name in row}
    samples: dict[str, list[float]] = defaultdict(list)
    for _ in range(rounds):
        for row in rows:
            for name in random.sample(list(row), len(row)):
                # The first one is for the interpreter, which has Flask's code run fast
                # for the one library that is in use, as it is in an application.
                row[name](repetitions[name])
                samples[name].append(row[name](repetitions[name]) / repetitions[name])
    return samples


def _repetitions(measure: Measure) -> int:
    # The least of some, the first of which is cold: with fewer repetitions than the
    # others have, a contestant would look slower.
    seconds = min(measure(10) for _ in range(4)) / 10
    return max(1, round(SAMPLE / seconds))


def weigh(name: str, url: str, contexts: int = 200) -> float:
    """Return the bytes of each context that is open with a session of its own."""
    app, names = CONTESTANTS[name].serve(url)
    source = "Session(engine)" if name == BY_HAND else CONTESTANTS[name].session
    use, sessions = compile(source, name, "eval"), []
    with ExitStack() as opened:
        for number in range(contexts + 1):
            if number == 1:  # without what is made once
                tracemalloc.start()
            opened.enter_context(app.app_context())
            sessions.append(eval(use, names))  # noqa: S307  # the contestants' own source
        size, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    return size / contexts


def grow(curve: str, size: int, source: str, rounds: int) -> list[float]:
    """Time what is used with so much else there, by all threads together."""
    names, alive, threads = (
        size if curve == each else 1 for each in (NAMES, ALIVE, THREADS)
    )
    app, maker = Flask(__name__), sessionmaker(create_engine("sqlite://"))
    sessions = [FlaskScopedSession(maker, app, name=str(i)) for i in range(names)]
    timer = Timer(source, globals={"app": app, "session": sessions[0]})

    @contextmanager
    def using_all() -> Iterator[None]:
        with app.app_context():
            for session in sessions:
                session()
            yield

    began: list[float] = []
    together = Barrier(threads, lambda: began.append(perf_counter()))

    def in_context(repetitions: int) -> float:
        with using_all():
            together.wait()
            timer.timeit(repetitions)
            return perf_counter()

    def measure(repetitions: int) -> float:
        ended = max(pool.map(in_context, [repetitions] * threads))
        return (ended - began[-1]) / threads

    with ExitStack() as others, ThreadPoolExecutor(threads) as pool:
        for _ in range(alive - 1):
            others.enter_context(using_all())
        return take([{curve: measure}], rounds)[curve]


def main(sqlite_url: str, postgresql_url: str, rounds: int, output: str) -> None:
    """Measure once, and write the samples."""
    cases = {name: timed(name, sqlite_url, postgresql_url) for name in CONTESTANTS}
    samples = take(
        [
            {cell(row, name): case[row] for name, case in cases.items() if row in case}
            for row in cases[OURS]
        ],
        rounds,
    )
    for name in CONTESTANTS:
        # Contexts of one thread share its session, and so have no memory to compare.
        if name not in (BY_THREAD, EMPTY_HOOK):
            samples[cell(MEMORY, name)] = [weigh(name, sqlite_url)]
    for row, source in GROWN.items():
        for curve, sizes in CURVES.items():
            for size in sizes:
                samples[cell(row, f"{size} {curve}")] = grow(
                    curve, size, source, rounds
                )
    benchmarks = []
    for name, values in samples.items():
        unit = "byte" if name.startswith(MEMORY) else "second"
        run = pyperf.Run(values, metadata={"name": name, "unit": unit})
        benchmarks.append(pyperf.Benchmark([run]))
    pyperf.BenchmarkSuite(benchmarks).dump(output, replace=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4])
