"""Promise 3, the second line: what no teardown released, and how it says so."""

from __future__ import annotations

import contextvars
import gc
import subprocess
import sys
import threading
import warnings
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session, sessionmaker

from flask_sqlalchemy_session import FlaskScopedSession
from tests.support import many_connections, use

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from flask import Flask
    from sqlalchemy import Engine

    from tests.support import Held


def run_in_thread(target: Callable[[], None]) -> None:
    """Run in a thread, whose end lets go of its context variables."""
    thread = threading.Thread(target=target)
    thread.start()
    thread.join()


def straggle(app: Flask, in_view: Callable[[], None], late: Callable[[], None]) -> None:
    """Call one function in a context, and another in a copy of it after it ended."""
    with app.app_context():
        in_view()
        variables = contextvars.copy_context()
    run_in_thread(lambda: variables.run(late))


def test_a_straggling_thread_says_what_happened(
    app: Flask, session: FlaskScopedSession[Session], held: Held, no_collector: None
) -> None:
    with pytest.warns(ResourceWarning) as caught:
        straggle(app, lambda: use(session()), lambda: use(session()))
    assert held.count == 0
    (warning,) = caught
    assert str(warning.message) == (
        "A session ('default') of Flask application 'shop' was closed by the safety "
        "net, not by a teardown: it was made after the context's teardown, by a thread "
        "that inherited the context or in a context that was pushed again and not "
        "popped. Give work that outlives a request a context of its own: 'with "
        "app.app_context():'. [late-session]"
    )


def test_a_straggling_thread_that_uses_the_session_first_says_so(
    app: Flask, session: FlaskScopedSession[Session], held: Held, no_collector: None
) -> None:
    with pytest.warns(ResourceWarning, match="by a thread that inherited the context"):
        straggle(app, lambda: None, lambda: use(session()))
    assert held.count == 0


def test_a_straggling_thread_does_not_see_the_requests_session(
    app: Flask, session: FlaskScopedSession[Session], held: Held, no_collector: None
) -> None:
    seen = []
    with pytest.warns(ResourceWarning):
        straggle(
            app,
            lambda: use(session()),
            lambda: seen.append(session.info.get("mark")),
        )
    assert seen == [None]


def test_a_context_that_is_never_popped_is_released_by_the_collector(
    app: Flask, session: FlaskScopedSession[Session], held: Held
) -> None:
    def push() -> None:
        app.app_context().push()
        use(session())

    contextvars.Context().run(push)
    with pytest.warns(ResourceWarning, match="the context was never popped"):
        gc.collect()
    assert held.count == 0
    with app.app_context():
        assert "mark" not in session.info


def test_a_context_that_is_pushed_again_and_forgotten_is_released(
    app: Flask, session: FlaskScopedSession[Session], held: Held
) -> None:
    def push_again() -> None:
        context = app.app_context()
        with context:
            use(session())
        assert held.count == 0
        context.push()
        use(session())

    contextvars.Context().run(push_again)
    with pytest.warns(ResourceWarning, match="pushed again and not popped"):
        gc.collect()
    assert held.count == 0


@many_connections
@pytest.mark.filterwarnings("ignore:A session:ResourceWarning")
def test_the_collector_releases_a_session_in_a_thread_that_ends(
    app: Flask, session: FlaskScopedSession[Session], held: Held, no_collector: None
) -> None:
    class Last:
        def __del__(self) -> None:
            gc.collect()

    def leave() -> None:
        app.app_context().push()
        session.execute(text("SELECT 1"))
        own.last = Last()  # Python frees it after the library's own

    own = threading.local()
    for _ in range(5):
        run_in_thread(leave)
    gc.collect()
    assert held.count == 0
    dummies = [type(thread).__name__ for thread in threading.enumerate()]
    assert "_DummyThread" not in dummies


def test_a_warning_names_each_session(
    app: Flask, engine: Engine, no_collector: None
) -> None:
    for name in ("default", "reports"):
        FlaskScopedSession(sessionmaker(engine), app, name=name)

    def use_both() -> None:
        for session in app.extensions["sqlalchemy_session"].values():
            session()

    with pytest.warns(ResourceWarning) as caught:
        straggle(app, lambda: None, use_both)
    told = [str(warning.message).split(" of ")[0] for warning in caught]
    assert sorted(told) == ["A session ('default')", "A session ('reports')"]


@pytest.fixture
def unraisable(monkeypatch: pytest.MonkeyPatch) -> list[sys.UnraisableHookArgs]:
    """Collect what `__del__` raised."""
    raised: list[sys.UnraisableHookArgs] = []
    monkeypatch.setattr(sys, "unraisablehook", raised.append)
    return raised


def test_a_session_is_closed_also_when_warnings_are_errors(
    app: Flask,
    session: FlaskScopedSession[Session],
    held: Held,
    no_collector: None,
    unraisable: list[sys.UnraisableHookArgs],
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        straggle(app, lambda: None, lambda: use(session()))
    assert held.count == 0
    (raised,) = unraisable
    assert isinstance(raised.exc_value, ResourceWarning)


def test_a_session_that_teardown_released_warns_of_nothing(
    app: Flask, session: FlaskScopedSession[Session], no_collector: None
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with app.app_context() as context:
            use(session())
        del context
    gc.collect()


SCRIPT = """
from flask import Flask
from sqlalchemy import create_engine, text
from sqlalchemy.orm import sessionmaker
from flask_sqlalchemy_session import FlaskScopedSession, current_session

app = Flask("script")
engine = create_engine("sqlite:///{path}")
session = FlaskScopedSession(sessionmaker(engine), app)
app.app_context().push()
current_session.execute(text("CREATE TABLE t (x)"))
print("done")
{end}
"""


@pytest.mark.parametrize(
    ("warn", "end", "code"),
    [("ignore", "", 0), ("always", "", 0), ("always", "raise SystemExit(3)", 3)],
)
def test_a_script_with_a_pushed_context_exits_without_noise(
    warn: str, end: str, code: int, tmp_path: Path
) -> None:
    script = SCRIPT.format(path=tmp_path / "t.sqlite3", end=end)
    done = subprocess.run(  # noqa: S603  # a script of ours
        [sys.executable, "-W", f"{warn}::ResourceWarning", "-c", script],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == code, done.stderr
    assert not done.stdout.removeprefix("done").strip()
    for noise in ("Exception ignored", "Traceback"):
        assert noise not in done.stderr
    if warn == "ignore":
        assert not done.stderr
