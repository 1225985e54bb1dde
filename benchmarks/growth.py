"""How the library's cost grows with what else there is. It must not."""

from __future__ import annotations

import contextvars
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from threading import Barrier, Thread
from time import perf_counter
from timeit import Timer
from typing import TYPE_CHECKING

from flask import Flask
from sqlalchemy import create_engine
from sqlalchemy.orm import Session, sessionmaker

from flask_sqlalchemy_session import FlaskScopedSession

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

USE = "`session()`"
CONTEXT = "a context that uses its session once"
LINES = {USE: "session()", CONTEXT: "with app.app_context(): session()"}


@dataclass(frozen=True)
class Scene:
    app: Flask
    session: FlaskScopedSession[Session]
    threads: int = 1

    def time(self, source: str, repetitions: int) -> float:
        """Return the seconds that each repetition takes, of all threads together."""
        timer = Timer(source, globals={"app": self.app, "session": self.session})
        if self.threads == 1:
            return timer.timeit(repetitions) / repetitions
        share = max(1, repetitions // self.threads)
        barrier = Barrier(self.threads + 1)

        def run() -> None:
            with self.app.app_context():
                self.session()
                barrier.wait()
                timer.timeit(share)

        threads = [Thread(target=run) for _ in range(self.threads)]
        for thread in threads:
            thread.start()
        barrier.wait()
        before = perf_counter()
        for thread in threads:
            thread.join()
        return (perf_counter() - before) / (share * self.threads)


@dataclass(frozen=True)
class Curve:
    title: str
    sizes: tuple[int, ...]
    scene: Callable[[int], AbstractContextManager[Scene]]

    def name(self, size: int, line: str) -> str:
        """What the measurements of one point are called in a file."""
        return f"{size} {self.title} | {line}"


def _one(name: str = "default") -> FlaskScopedSession[Session]:
    return FlaskScopedSession(sessionmaker(create_engine("sqlite://")), name=name)


@contextmanager
def _nested(depth: int) -> Iterator[Scene]:
    app, session = Flask(__name__), _one()
    session.init_app(app)
    with ExitStack() as stack:
        for _ in range(depth):
            stack.enter_context(app.app_context())
            session()
        yield Scene(app, session)


@contextmanager
def _names(count: int) -> Iterator[Scene]:
    app, sessions = Flask(__name__), [_one(f"database {i}") for i in range(count)]
    for session in sessions:
        session.init_app(app)
    with app.app_context():
        for session in sessions:
            session()
        yield Scene(app, sessions[0])


@contextmanager
def _alive(count: int) -> Iterator[Scene]:
    app, session = Flask(__name__), _one()
    session.init_app(app)

    def enter() -> Callable[[], None]:
        context = app.app_context()
        context.push()
        session()
        return context.pop

    opened = []
    for _ in range(count - 1):
        variables = contextvars.Context()
        opened.append((variables, variables.run(enter)))
    with app.app_context():
        session()
        yield Scene(app, session)
    while opened:
        variables, pop = opened.pop()
        variables.run(pop)


@contextmanager
def _threads(count: int) -> Iterator[Scene]:
    app, session = Flask(__name__), _one()
    session.init_app(app)
    with app.app_context():
        session()
        yield Scene(app, session, count)


CURVES = [
    Curve("contexts nested", (1, 3, 10, 30, 100), _nested),
    Curve("names on one application", (1, 2, 4, 8, 16), _names),
    Curve("contexts alive at once", (1, 10, 100, 1000, 10_000), _alive),
    Curve("threads", (1, 2, 4, 8, 16), _threads),
]
