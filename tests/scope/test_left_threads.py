"""A thread that a dead context was left on serves its later requests as any other.

Up to Flask 3.1 a context that ends elsewhere stays the current one of its thread.
"""

from __future__ import annotations

import contextvars
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from flask import (
    Flask,
    copy_current_request_context,
    current_app,
    g,
    request,
    stream_with_context,
    url_for,
)
from sqlalchemy import func, select, text
from sqlalchemy.orm import Session, sessionmaker
from werkzeug.test import EnvironBuilder, run_wsgi_app

from flask_sqlalchemy_session import FlaskScopedSession, current_session
from tests.scope.flask_versions import before_flask_3_2
from tests.support import Held, OopsError, User, default_session

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from flask import Response
    from flask.typing import ResponseReturnValue
    from sqlalchemy import Engine


pytestmark = [
    pytest.mark.usefixtures("no_collector"),
    pytest.mark.parametrize("engine", ["postgresql"], indirect=True),
]


on_a_thread_that_was_left = before_flask_3_2(
    "a context that ends elsewhere is refused, and stays live"
)


@pytest.fixture
def thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadPoolExecutor]:
    """A thread of a server's, on which contexts are left."""
    # Flask refuses the foreign pop in a finaliser, which nobody can catch.
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)
    with ThreadPoolExecutor(1) as pool:
        yield pool


def serve(app: Flask, path: str) -> str:
    """Answer a request as a server does, in the thread's own context variables."""
    body, status, _ = run_wsgi_app(app, EnvironBuilder(path).get_environ())
    assert status.startswith(("200", "500")), status
    return b"".join(body).decode()


def begin_stream(app: Flask) -> Iterator[bytes]:
    body = iter(app(EnvironBuilder("/stream").get_environ(), lambda *_: lambda _: None))
    assert next(body) == b"row"
    return body


class Seen:
    """What each request found, kept so that no session is made at the same place."""

    def __init__(self) -> None:
        self.sessions: list[Session] = []

    def use(self) -> None:
        mine = default_session()
        assert not mine.info
        assert not mine.in_transaction()
        assert not mine.identity_map
        assert not any(mine is session for session in self.sessions)
        self.sessions.append(mine)
        mine.info["mark"] = True
        mine.add(User(name=f"request {len(self.sessions)}"))
        mine.flush()


@pytest.fixture
def seen() -> Seen:
    return Seen()


@pytest.fixture
def views(app: Flask, session: FlaskScopedSession[Session], seen: Seen) -> None:
    @app.get("/")
    def index() -> str:
        seen.use()
        return "used"

    @app.get("/commit")
    def commit() -> str:
        seen.use()
        session.commit()
        return "committed"

    @app.get("/fail")
    def fail() -> str:
        seen.use()
        raise OopsError

    @app.get("/stream")
    def stream() -> Iterator[str]:
        def body() -> Iterator[str]:
            current_session.info["stream"] = True
            current_session.scalars(select(User)).all()
            yield "row"
            yield "row"

        return stream_with_context(body())


def check_requests(
    app: Flask, thread: ThreadPoolExecutor, seen: Seen, held: Held, also: int = 0
) -> None:
    for path in ("/", "/fail", "/commit", "/", "/commit", "/fail"):
        thread.submit(serve, app, path).result()
        assert held.count == also
        assert not seen.sessions[-1].in_transaction()
    assert len(seen.sessions) == 6
    with Session(held.engine) as after:
        assert after.scalar(select(func.count()).select_from(User)) == 2


@pytest.mark.usefixtures("views")
@on_a_thread_that_was_left
def test_requests_after_a_body_that_was_reclaimed_elsewhere(
    app: Flask, thread: ThreadPoolExecutor, seen: Seen, held: Held
) -> None:
    body = thread.submit(begin_stream, app).result()
    assert held.count == 1
    del body  # here, in another thread
    assert held.count == 0
    check_requests(app, thread, seen, held)


@pytest.mark.usefixtures("views")
@on_a_thread_that_was_left
def test_requests_while_a_body_is_not_reclaimed_and_after(
    app: Flask, thread: ThreadPoolExecutor, seen: Seen, held: Held
) -> None:
    body = thread.submit(begin_stream, app).result()
    assert thread.submit(serve, app, "/").result() == "used"
    assert held.count == 1  # the body's
    del body
    assert held.count == 0
    seen.sessions.clear()
    check_requests(app, thread, seen, held)


@pytest.mark.usefixtures("views")
@on_a_thread_that_was_left
def test_requests_after_a_body_that_another_request_reclaimed(
    app: Flask, thread: ThreadPoolExecutor, seen: Seen, held: Held
) -> None:
    bodies = [thread.submit(begin_stream, app).result()]

    def reclaim_in_a_context() -> None:
        with app.app_context():
            current_session.add(User(name="live"))
            current_session.flush()
            bodies.clear()
            assert held.count == 1
            current_session.rollback()

    reclaim_in_a_context()
    assert held.count == 0
    check_requests(app, thread, seen, held)


@pytest.mark.usefixtures("views")
@on_a_thread_that_was_left
@pytest.mark.parametrize("kind", ["app_context", "test_request_context"])
def test_requests_after_a_job_whose_context_was_popped_elsewhere(
    kind: str, app: Flask, thread: ThreadPoolExecutor, seen: Seen, held: Held
) -> None:
    context = getattr(app, kind)()

    def push() -> None:
        context.push()
        current_session.info["job"] = True
        current_session.scalars(select(User)).all()

    thread.submit(push).result()
    with pytest.raises((ValueError, LookupError)):
        context.pop()
    assert held.count == 0
    check_requests(app, thread, seen, held)


@pytest.mark.usefixtures("views")
@on_a_thread_that_was_left
def test_a_request_context_that_asks_for_its_application_is_given_it(
    app: Flask,
    thread: ThreadPoolExecutor,
    seen: Seen,
    held: Held,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from flask.ctx import RequestContext  # noqa: PLC0415  # which Flask 3.2 warns of

    names: list[str] = []

    class Named(RequestContext):
        def push(self) -> None:
            names.append(self.app.name)
            super().push()
            names.append(self.app.name)

    def request_context(app: Flask, environ: Any) -> Named:
        return Named(app, environ)

    body = thread.submit(begin_stream, app).result()
    monkeypatch.setattr(Flask, "request_context", request_context)
    for path in ("/", "/commit"):
        thread.submit(serve, app, path).result()
        assert held.count == 1  # the body's
    assert names == [app.name] * 4
    assert len(seen.sessions) == 2
    del body


@pytest.mark.usefixtures("views")
@on_a_thread_that_was_left
def test_a_request_that_is_not_pushed_there_keeps_its_application(
    app: Flask, thread: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flask.ctx import RequestContext  # noqa: PLC0415  # which Flask 3.2 warns of

    class Failing(RequestContext):
        def push(self) -> None:
            raise OopsError

    def push() -> object:
        request = app.test_request_context()
        with pytest.raises(OopsError):
            request.push()
        return request.app

    def request_context(app: Flask, environ: Any) -> Failing:
        return Failing(app, environ)

    body = thread.submit(begin_stream, app).result()
    monkeypatch.setattr(Flask, "request_context", request_context)
    assert thread.submit(push).result() is app
    del body


@pytest.mark.usefixtures("views")
@on_a_thread_that_was_left
def test_a_stream_on_a_thread_that_was_left_is_read_to_its_end(
    app: Flask, thread: ThreadPoolExecutor, seen: Seen, held: Held
) -> None:
    body = thread.submit(begin_stream, app).result()
    del body
    for _ in range(2):
        assert thread.submit(serve, app, "/stream").result() == "rowrow"
        assert held.count == 0
    check_requests(app, thread, seen, held)


@pytest.mark.usefixtures("views")
@before_flask_3_2("a request has a context of its own in any case")
def test_a_request_in_a_live_context_shares_its_session_all_the_same(
    app: Flask, session: FlaskScopedSession[Session], seen: Seen, held: Held
) -> None:
    with app.app_context():
        contextvars.copy_context().run(serve, app, "/")
        assert session() is seen.sessions[0]
        assert held.count == 1
    assert held.count == 0


@before_flask_3_2("it gives the method the context")
def test_a_request_that_is_pushed_again_is_answered(
    app: Flask, session: FlaskScopedSession[Session], held: Held
) -> None:
    @app.get("/")
    def index() -> str:
        session()
        return "answered"

    context = app.test_request_context("/")
    for _ in range(2):
        with context:
            assert app.full_dispatch_request().get_data(as_text=True) == "answered"
        assert held.count == 0


@before_flask_3_2("a request has a context of its own in any case")
def test_requests_that_a_view_makes_share_its_session_each_time(
    app: Flask, session: FlaskScopedSession[Session], held: Held
) -> None:
    sessions: list[Session] = []

    @app.get("/")
    def index() -> str:
        sessions.append(session())
        return ""

    @app.get("/outer")
    def outer() -> str:
        for _ in range(3):
            app.test_client().get("/")
        return index()

    app.test_client().get("/outer")
    assert sessions == sessions[:1] * 4
    assert held.count == 0


@before_flask_3_2("a request has a context of its own in any case")
@pytest.mark.parametrize("used", [True, False])
def test_a_request_in_a_context_that_was_pushed_before_the_set_up_shares_its_session(
    used: bool, app: Flask, engine: Engine
) -> None:
    with app.app_context():
        session = FlaskScopedSession(sessionmaker(engine), app)
        if used:
            session()

        @app.get("/")
        def index() -> str:
            session.info["mark"] = "the request's"
            return "marked"

        assert app.test_client().get("/").text == "marked"
        assert session.info["mark"] == "the request's"


@before_flask_3_2("a request has a context of its own in any case")
def test_all_requests_in_a_live_context_share_its_session(
    app: Flask, session: FlaskScopedSession[Session], held: Held
) -> None:
    @app.get("/")
    def index() -> str:
        return str(session.info["mark"])

    with app.app_context():
        session.info["mark"] = "the context's"
        for _ in range(3):
            assert app.test_client().get("/").text == "the context's"
        assert held.count == 0


@before_flask_3_2("a request has a context of its own in any case")
def test_a_request_that_fails_at_its_end_leaves_the_live_context_it_is_in(
    app: Flask, session: FlaskScopedSession[Session], held: Held
) -> None:
    @app.get("/")
    def index() -> str:
        return "answered"

    @app.teardown_request
    def fail(_: BaseException | None) -> None:
        raise OopsError

    with app.app_context():
        session.add(User(name="live"))
        session.flush()
        mine = session()
        with pytest.raises(OopsError):
            serve(app, "/")
        assert session() is mine
        session.commit()
    assert held.count == 0
    with Session(held.engine) as after:
        assert after.scalar(select(func.count()).select_from(User)) == 1


@before_flask_3_2("a request has a context of its own in any case")
def test_a_request_whose_after_request_function_fails_leaves_the_live_context_shared(
    app: Flask, session: FlaskScopedSession[Session], held: Held
) -> None:
    @app.get("/")
    @app.get("/fail")
    def index() -> str:
        return str(session.info["mark"])

    @app.after_request
    def fail(response: Response) -> Response:
        if request.path == "/fail":
            raise OopsError
        return response

    with app.app_context():
        session.info["mark"] = "the context's"
        assert app.test_client().get("/fail").status_code == 500
        assert app.test_client().get("/").text == "the context's"
    assert held.count == 0


@before_flask_3_2("a request has a context of its own in any case")
def test_a_request_that_an_after_request_function_makes_shares_its_session(
    app: Flask, session: FlaskScopedSession[Session], held: Held
) -> None:
    @app.get("/")
    @app.get("/inner")
    def index() -> str:
        return str(session.info.setdefault("mark", request.path))

    @app.after_request
    def ask(response: Response) -> Response:
        if request.path == "/":
            assert app.test_client().get("/inner").text == "/"
        return response

    assert app.test_client().get("/").text == "/"
    assert held.count == 0


def of_a_copied_request(job: Callable[[], None]) -> Callable[[], None]:
    with current_app.test_request_context():
        return copy_current_request_context(job)


def of_a_request_that_was_made_elsewhere(job: Callable[[], None]) -> Callable[[], None]:
    context = current_app.test_request_context()

    def run() -> None:
        with context:
            job()

    return run


@pytest.mark.usefixtures("views")
@on_a_thread_that_was_left
@pytest.mark.parametrize(
    "of_a_request", [of_a_copied_request, of_a_request_that_was_made_elsewhere]
)
def test_jobs_on_a_thread_that_was_left(
    of_a_request: Callable[[Callable[[], None]], Callable[[], None]],
    app: Flask,
    thread: ThreadPoolExecutor,
    seen: Seen,
    held: Held,
) -> None:
    body = thread.submit(begin_stream, app).result()
    del body
    for _ in range(3):
        with app.app_context():
            job = of_a_request(seen.use)
        thread.submit(job).result()
        assert held.count == 0
    assert len(seen.sessions) == 3


def ask(app: Flask) -> None:
    assert app.test_client().get("/inner").text == "answered"


def build_an_address(app: Flask) -> None:
    with app.test_request_context():
        assert url_for("inner") == "/inner"


@pytest.mark.usefixtures("views")
@on_a_thread_that_was_left
@pytest.mark.parametrize("make_a_request", [ask, build_an_address])
def test_requests_while_the_body_of_a_view_that_made_a_request_is_not_reclaimed(
    make_a_request: Callable[[Flask], None],
    app: Flask,
    thread: ThreadPoolExecutor,
    held: Held,
) -> None:
    app.add_url_rule("/inner", "inner", lambda: "answered")
    stream = app.view_functions["stream"]

    def ask_and_stream() -> ResponseReturnValue:
        make_a_request(app)
        return app.ensure_sync(stream)()  # type: ignore[no-any-return]

    app.view_functions["stream"] = ask_and_stream
    body = thread.submit(begin_stream, app).result()
    assert thread.submit(serve, app, "/").result() == "used"
    assert held.count == 1  # the body's
    del body
    assert held.count == 0


@pytest.mark.usefixtures("views")
@before_flask_3_2("a request has a context of its own in any case")
def test_a_request_in_a_context_that_was_pushed_again_shares_its_session(
    app: Flask, session: FlaskScopedSession[Session], seen: Seen, held: Held
) -> None:
    context = app.app_context()
    with context:
        session.execute(text("SELECT 1"))
    with context:
        contextvars.copy_context().run(serve, app, "/")
        assert session() is seen.sessions[0]
        assert held.count == 1
    assert held.count == 0


def test_a_streamed_body_keeps_its_views_g(
    app: Flask, session: FlaskScopedSession[Session]
) -> None:
    @app.get("/")
    def stream() -> Iterator[str]:
        g.mark = "the view's"
        session.execute(text("SELECT 1"))

        def body() -> Iterator[str]:
            session.execute(text("SELECT 1"))
            yield g.mark

        return stream_with_context(body())

    assert app.test_client().get("/").text == "the view's"
