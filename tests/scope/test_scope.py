"""Promises 1 and 2: a context has one session of its own, made when first used."""

from __future__ import annotations

import contextvars
import gc
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, cast
from unittest import mock
from weakref import ref

import pytest
from flask import Flask, Response, current_app, g
from flask.globals import app_ctx
from sqlalchemy import text
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.orm import Session, sessionmaker

from flask_sqlalchemy_session import FlaskScopedSession, current_session
from tests.scope.flask_versions import before_flask_3_2
from tests.support import many_connections, use

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Engine

    from tests.support import Held, User


def test_a_context_has_one_session(
    app: Flask, session: FlaskScopedSession[Session], held: Held
) -> None:
    with app.app_context():
        assert session() is session()
        assert session() == current_session
        current_session.execute(text("SELECT 1"))
        assert held.count == 1
    assert held.count == 0


def test_a_session_whose_factory_clears_g_is_the_contexts_all_the_same(
    app: Flask, engine: Engine, held: Held
) -> None:
    def make() -> Session:
        vars(g).clear()
        return Session(engine)

    session = FlaskScopedSession(make, app)
    with app.app_context():
        first = session()
        use(first)
        assert session() is first
        assert held.count == 1
    assert held.count == 0


def test_a_context_that_is_pushed_twice_keeps_its_session(
    app: Flask, session: FlaskScopedSession[Session], held: Held
) -> None:
    with app.app_context() as context:
        use(session())
        first = session()
        with context:
            assert session() is first
        assert session() is first
        assert held.count == 1
    assert held.count == 0


def test_nested_contexts_of_one_app_have_sessions_of_their_own(
    app: Flask, session: FlaskScopedSession[Session], held: Held
) -> None:
    with app.app_context():
        outer = session()
        outer.info["mark"] = "outer"
        with app.app_context():
            assert session() is not outer
            assert "mark" not in session.info
        assert session() is outer
        assert session.info["mark"] == "outer"
    assert held.count == 0


def test_nested_contexts_of_two_apps_that_share_an_object(
    app: Flask, session: FlaskScopedSession[Session], held: Held
) -> None:
    other = Flask("other")
    session.init_app(other)
    with app.app_context():
        outer = session()
        with other.app_context():
            assert session() is not outer
            assert session() == current_session
            use(session())
        assert session() is outer
        assert held.count == 0


def test_nested_contexts_of_two_apps_with_objects_of_their_own(
    app: Flask, engine: Engine, session: FlaskScopedSession[Session], held: Held
) -> None:
    other = Flask("other")
    other_session = FlaskScopedSession(sessionmaker(engine), other)
    with app.app_context():
        outer = session()
        with other.app_context():
            assert current_session == other_session()
            assert other_session() is not outer
            with pytest.raises(RuntimeError, match="'other' has another session"):
                session()
        assert current_session == outer
    assert held.count == 0


@many_connections
@pytest.mark.parametrize("name", ["first", "others", "released", "sealed", "ended"])
def test_a_session_may_have_any_name(
    name: str, app: Flask, session: FlaskScopedSession[Session], held: Held
) -> None:
    named = FlaskScopedSession(session.session_factory, app, name=name)
    for one, other in ((session, named), (named, session)):
        with app.app_context():
            for each in (one, other):
                each.execute(text("SELECT 1"))
            one.remove()
            one.execute(text("SELECT 1"))
            assert held.count == 2
        assert held.count == 0


@many_connections
def test_two_objects_under_two_names_are_both_released(
    app: Flask, engine: Engine, session: FlaskScopedSession[Session], held: Held
) -> None:
    reports = FlaskScopedSession(sessionmaker(engine), app, name="reports")
    with app.app_context():
        assert reports() is not session()
        assert current_session == session()
        session.execute(text("SELECT 1"))
        reports.execute(text("SELECT 1"))
        assert held.count == 2
    assert held.count == 0


@many_connections
def test_interleaved_contexts_in_context_variables_of_their_own(
    app: Flask, session: FlaskScopedSession[Session], held: Held
) -> None:
    def steps() -> Iterator[Session]:
        with app.app_context():
            session.execute(text("SELECT 1"))
            yield session()
            yield session()

    variables = [contextvars.Context() for _ in range(3)]
    tasks = [steps() for _ in variables]
    first = [v.run(next, t) for v, t in zip(variables, tasks, strict=True)]
    assert held.count == 3
    second = [v.run(next, t) for v, t in zip(variables, tasks, strict=True)]
    assert all(a is b for a, b in zip(first, second, strict=True))
    assert len({id(one) for one in first}) == 3
    for v, task in zip(variables, tasks, strict=True):
        assert v.run(next, task, None) is None
    assert held.count == 0


def test_a_context_that_a_request_opens_at_its_end_leaves_the_requests_session(
    app: Flask, session: FlaskScopedSession[Session], held: Held
) -> None:
    seen: list[Session] = []

    @app.get("/")
    def view() -> str:
        use(session())
        seen.append(session())
        return ""

    @app.teardown_request
    def look(_: BaseException | None) -> None:
        with app.app_context():
            pass
        seen.append(session())
        assert session.in_transaction()

    assert app.test_client().get("/").status_code == 200
    assert seen[0] is seen[1]
    assert held.count == 0


@before_flask_3_2("a context that is pushed again above another is not current")
def test_a_context_that_is_pushed_above_another_again_keeps_its_session(
    app: Flask, session: FlaskScopedSession[Session], held: Held
) -> None:
    first = app.app_context()
    with first:
        use(session())
        of_first = session()
        with app.app_context():
            of_second = session()
            with first:
                assert session() is of_first
            assert session() is of_second
        assert session() is of_first
    assert held.count == 0


@before_flask_3_2("it refuses to pop a context that is not current")
@many_connections
def test_contexts_popped_in_the_wrong_order_are_released(
    app: Flask, session: FlaskScopedSession[Session], held: Held
) -> None:
    def pop_the_lower_first() -> None:
        lower, upper = app.app_context(), app.app_context()
        lower.push()
        session.execute(text("SELECT 1"))
        upper.push()
        session.execute(text("SELECT 1"))
        assert held.count == 2
        with pytest.raises(AssertionError, match="wrong app context"):
            lower.pop()
        with pytest.raises((AssertionError, LookupError)):
            upper.pop()

    contextvars.Context().run(pop_the_lower_first)
    assert held.count == 0


def test_a_request_inside_another_apps_context_has_its_own_session(
    app: Flask, session: FlaskScopedSession[Session], held: Held
) -> None:
    other = Flask("other")
    session.init_app(other)
    seen = []

    @other.get("/")
    def index() -> str:
        seen.append(session())
        use(session())
        return ""

    with app.app_context():
        outer = session()
        assert other.test_client().get("/").status_code == 200
        assert seen[0] is not outer
        assert session() is outer
        assert held.count == 0


def test_a_context_that_never_touches_the_session_makes_none(app: Flask) -> None:
    factory = mock.Mock(side_effect=Session)
    session = FlaskScopedSession(factory, app)
    with app.app_context():
        dir(session)
        assert not hasattr(session, "_private")
        assert not session.registry.has()
        session.remove()
    factory.assert_not_called()


def test_a_session_is_made_once_a_context(app: Flask) -> None:
    factory = mock.Mock(side_effect=Session)
    session = FlaskScopedSession(factory, app)
    for _ in range(2):
        with app.app_context():
            session()
            session.proxy.info["mark"] = True
            assert session.info == {"mark": True}
    assert factory.call_count == 2


def test_remove_closes_the_session_and_the_next_use_makes_a_new_one(
    app: Flask, session: FlaskScopedSession[Session], held: Held
) -> None:
    with app.app_context():
        first = session()
        use(first)
        session.remove()
        assert held.count == 0
        assert session() is not first
        assert "mark" not in session.info
        session.remove()
        session.remove()


@pytest.mark.usefixtures("no_collector")
def test_a_context_keeps_no_session_that_was_removed(app: Flask) -> None:
    session = FlaskScopedSession(Session, app)
    with app.app_context():
        made = []
        for _ in range(9):
            made.append(ref(session()))
            session.remove()
        # What a context holds first and last is let go at its end.
        assert [one() for one in made[1:-1]] == [None] * 7
    assert [one() for one in made] == [None] * 9


def test_teardown_calls_a_subclasss_remove(
    app: Flask, engine: Engine, held: Held
) -> None:
    marks = []

    class Audited(FlaskScopedSession[Session]):
        def remove(self) -> None:
            marks.append(self.info.get("mark"))
            super().remove()

    session = Audited(sessionmaker(engine), app)
    with app.app_context():
        use(session())
    assert marks == [True]
    with app.app_context():
        pass
    assert marks == [True]  # not where the session was not used
    assert held.count == 0


def test_teardown_calls_a_mocks_remove_and_closes_what_it_leaves(
    app: Flask, session: FlaskScopedSession[Session], held: Held
) -> None:
    with mock.patch.object(session, "remove") as remove:
        with app.app_context():
            use(session())
        remove.assert_called_once_with()
        assert held.count == 0
    with app.app_context():
        assert "mark" not in session.info
    remove.assert_called_once_with()


@many_connections
@pytest.mark.parametrize("first", ["the request", "the job"])
def test_a_job_that_is_given_the_g_of_a_request_has_a_session_of_its_own(
    first: str, app: Flask, session: FlaskScopedSession[Session], held: Held
) -> None:
    """As Flask-Executor does; the job that is first to use its session ends first."""
    used, goes_on = threading.Event(), threading.Event()

    def read() -> None:
        session.info["mark"] = True
        session.execute(text("SELECT 1"))

    def run(shared: Any) -> None:
        with app.app_context() as context:
            context.g = shared
            read()
            used.set()
            assert goes_on.wait(30)
            assert "mark" in session.info

    with ThreadPoolExecutor(1) as pool:
        with app.app_context() as request:
            if first == "the request":
                read()
            job = pool.submit(run, request.g)
            assert used.wait(30)
            if first == "the job":
                read()
            assert held.count == 2
            if first == "the job":
                goes_on.set()
                job.result(30)
                assert held.count == 1
            assert "mark" in session.info
        if first == "the request":
            assert held.count == 1
            goes_on.set()
            job.result(30)
    assert held.count == 0


def test_the_end_of_a_context_leaves_the_session_of_one_whose_g_it_was_given(
    app: Flask, session: FlaskScopedSession[Session], held: Held
) -> None:
    with app.app_context() as outer:
        use(session())
        with app.app_context() as inner:
            inner.g = outer.g
            assert "mark" in session.info
        assert "mark" in session.info
        assert held.count == 1
    assert held.count == 0


def test_a_g_that_is_cleared_keeps_the_session(
    app: Flask, session: FlaskScopedSession[Session], held: Held
) -> None:
    with app.app_context() as context:
        use(session())
        vars(context.g).clear()
        assert "mark" in session.info
    assert held.count == 0


def test_a_factory_that_sets_another_g_makes_one_session(
    app: Flask, engine: Engine, held: Held
) -> None:
    def make() -> Session:
        app_ctx.g = app.app_ctx_globals_class()
        return Session(engine)

    session = FlaskScopedSession(make, app)
    with app.app_context():
        use(session())
        assert session() is session()
    assert held.count == 0


def test_teardown_calls_a_remove_that_is_patched_for_every_object(
    app: Flask, session: FlaskScopedSession[Session], held: Held
) -> None:
    with mock.patch.object(FlaskScopedSession, "remove", autospec=True) as remove:
        with app.app_context():
            use(session())
        remove.assert_called_once_with(session)
    assert held.count == 0


def test_teardown_asks_a_fake_for_no_more_than_close(
    app: Flask, session: FlaskScopedSession[Session]
) -> None:
    class Fake:
        __slots__ = ("closed",)  # no room for a weak reference either

        def __init__(self) -> None:
            self.closed = 0

        def close(self) -> None:
            self.closed += 1

    fake = Fake()
    with app.app_context():
        session.registry.set(cast("Session", fake))
        assert cast("object", session()) is fake
        with ThreadPoolExecutor(1) as pool:
            variables = contextvars.copy_context()
            given: object = pool.submit(variables.run, session).result()
            assert given is fake
    assert fake.closed == 1


def test_keyword_arguments_reach_the_factory_on_first_use(
    app: Flask, session: FlaskScopedSession[Session]
) -> None:
    with app.app_context():
        made = session(info={"tenant": 1}, expire_on_commit=False)
        assert session() is made
        assert current_session.info == {"tenant": 1}
        assert not session.expire_on_commit
        with pytest.raises(InvalidRequestError, match="was made already"):
            session(info={"tenant": 2})
        session.remove()
        assert session(info={"tenant": 2}).info == {"tenant": 2}


def test_configure_outside_a_context_reaches_later_sessions(
    app: Flask, engine: Engine
) -> None:
    session = FlaskScopedSession(sessionmaker(), app)
    session.configure(bind=engine, expire_on_commit=False)
    with app.app_context():
        assert session.get_bind() is engine
        assert not session.expire_on_commit


def test_remove_outside_a_context_has_nothing_to_do(
    session: FlaskScopedSession[Session],
) -> None:
    session.remove()


def test_an_app_can_be_set_up_inside_its_own_context(
    app: Flask, engine: Engine, held: Held
) -> None:
    session = FlaskScopedSession(sessionmaker(engine))
    with app.app_context():
        session.init_app(current_app)
        use(session())
        assert session() == current_session
    assert held.count == 0
    with app.app_context():
        assert "mark" not in session.info


def test_setting_up_an_app_again_changes_nothing(
    app: Flask, session: FlaskScopedSession[Session]
) -> None:
    with mock.patch.object(session, "remove", wraps=session.remove) as remove:
        session.init_app(app)
        session.init_app(app)
        with app.app_context():
            session()
    remove.assert_called_once_with()
    assert app.extensions["sqlalchemy_session"] == {"default": session}


def test_an_application_may_have_a_class_of_its_own_for_g(
    app: Flask, session: FlaskScopedSession[Session], held: Held
) -> None:
    class Globals:
        pass

    app.app_ctx_globals_class = Globals  # type: ignore[assignment]  # Flask takes any
    with app.app_context():
        pass
    with app.app_context():
        use(session())
        assert session() is current_session()  # type: ignore[operator]  # as 1.1 has it
    assert held.count == 0


def test_an_async_view_uses_the_sync_session(
    app: Flask, session: FlaskScopedSession[Session], held: Held, ann: User
) -> None:
    seen = []

    @app.before_request
    def before() -> None:
        seen.append(session())

    @app.get("/")
    async def index() -> str:
        seen.append(session())
        use(session())
        return current_session.get_one(type(ann), ann.id).name

    assert app.test_client().get("/").text == "ann"
    assert seen[0] is seen[1]
    assert held.count == 0
    with app.app_context():
        assert "mark" not in session.info


def test_a_session_first_used_in_an_async_view_is_the_contexts(
    app: Flask, session: FlaskScopedSession[Session], held: Held
) -> None:
    seen = []

    @app.get("/")
    async def index() -> str:
        use(session())
        seen.append(session())
        return ""

    @app.after_request
    def after(response: Response) -> Response:
        seen.append(session())
        return response

    assert app.test_client().get("/").status_code == 200
    assert seen[0] is seen[1]
    assert held.count == 0


@many_connections
def test_threads_that_race_for_the_first_use_get_one_session(
    app: Flask, engine: Engine, held: Held
) -> None:
    barrier = threading.Barrier(2, timeout=30)
    made: list[Session] = []

    def factory() -> Session:
        session = Session(engine)
        session.execute(text("SELECT 1"))  # the loser holds a connection as well
        made.append(session)
        barrier.wait()  # neither thread has kept its session before this
        return session

    session = FlaskScopedSession(factory, app)
    got: list[Session] = []
    with app.app_context():
        threads = [
            threading.Thread(
                target=contextvars.copy_context().run,
                args=(lambda: got.append(session()),),
            )
            for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(made) == 2
        assert got == [session(), session()]
        loser = next(one for one in made if one is not session())
        assert not loser.in_transaction()
        assert session.in_transaction()
        assert held.count == 1
    assert held.count == 0


class SlowDict(dict[str, Any]):
    """Lets other threads look for the same, before anything follows from it."""

    def setdefault(self, key: str, default: Any = None) -> Any:
        found = super().setdefault(key, default)
        time.sleep(0.02)
        return found


class SlowGlobals:
    def __init__(self) -> None:
        self.__dict__ = SlowDict()


@many_connections
def test_threads_that_race_after_a_remove_get_one_session(
    app: Flask, session: FlaskScopedSession[Session], held: Held
) -> None:
    app.app_ctx_globals_class = SlowGlobals  # type: ignore[assignment]  # Flask takes any
    with app.app_context(), ThreadPoolExecutor(4) as pool:
        session()
        session.remove()
        runs = [contextvars.copy_context().run for _ in range(4)]
        got = [each.result() for each in [pool.submit(run, session) for run in runs]]
        assert {*map(id, got)} == {id(session())}
        use(session())
        assert held.count == 1
    assert held.count == 0


@many_connections
def test_threads_with_contexts_of_their_own_never_share(
    app: Flask, session: FlaskScopedSession[Session], held: Held
) -> None:
    barrier = threading.Barrier(3, timeout=30)
    seen: list[Session] = []

    def work() -> None:
        with app.app_context():
            session.info["mark"] = threading.get_ident()
            barrier.wait()
            assert session.info["mark"] == threading.get_ident()
            seen.append(session())
            barrier.wait()

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(one) for one in seen}) == 3
    assert held.count == 0


def test_thousands_of_contexts_leave_nothing(
    app: Flask, session: FlaskScopedSession[Session], held: Held
) -> None:
    def serve(contexts: int) -> int:
        for _ in range(contexts):
            with app.app_context():
                session.execute(text("SELECT 1"))
        gc.collect()
        return len(gc.get_objects())

    serve(100)  # fills the caches
    before = serve(100)
    assert serve(3000) < before + 1000
    assert held.count == 0


def test_the_registry_is_given_a_session(
    app: Flask, session: FlaskScopedSession[Session], engine: Engine, held: Held
) -> None:
    second = Session(engine)
    with app.app_context():
        use(session())
        session.registry.set(second)
        assert session() is second
        use(second)
        session.registry.set(second)  # again, which changes nothing
        assert second.in_transaction()
    assert held.count == 0
