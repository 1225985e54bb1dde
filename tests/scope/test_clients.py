"""What SQLAlchemy, Flask's commands and a queue of jobs do with the session."""

from __future__ import annotations

import threading
from queue import Queue
from typing import TYPE_CHECKING, TypeVar

import click
from flask.cli import shell_command
from sqlalchemy import event, func, inspect, select
from sqlalchemy.orm import Query, Session, object_session, sessionmaker

from flask_sqlalchemy_session import FlaskScopedSession, current_session
from tests.support import User

if TYPE_CHECKING:
    from collections.abc import Callable

    from flask import Flask
    from sqlalchemy import Engine

    from tests.support import Held

T = TypeVar("T")


def count_users(engine: Engine) -> int:
    """Count what is committed, without the session that is tested."""
    with Session(engine) as session:
        return session.scalars(select(func.count()).select_from(User)).one()


class TestSQLAlchemy:
    def test_a_query_made_elsewhere_runs_in_the_current_session(
        self, app: Flask, session: FlaskScopedSession[Session], ann: User
    ) -> None:
        query: Query[User] = Query(User).filter_by(name="ann")
        with app.app_context():
            found = query.with_session(current_session).one()
            assert found.id == ann.id
            assert object_session(found) is session()
            assert query.with_session(session()).one() is found

    def test_a_listener_on_the_factory_hears_every_session(
        self, app: Flask, engine: Engine
    ) -> None:
        maker = sessionmaker(engine)
        session = FlaskScopedSession(maker, app)
        heard: list[Session] = []
        event.listen(maker, "before_commit", heard.append)
        self.check_heard(app, session, heard)

    def test_a_listener_on_the_scoped_session_hears_every_session(
        self, app: Flask, engine: Engine
    ) -> None:
        session = FlaskScopedSession(sessionmaker(engine), app)
        heard: list[Session] = []
        event.listen(session, "before_commit", heard.append)
        self.check_heard(app, session, heard)

    def test_a_listener_on_the_class_hears_every_session(
        self, app: Flask, engine: Engine
    ) -> None:
        class OwnSession(Session):
            pass

        session = FlaskScopedSession(sessionmaker(engine, class_=OwnSession), app)
        heard: list[Session] = []
        event.listen(OwnSession, "before_commit", heard.append)
        self.check_heard(app, session, heard)

    def check_heard(
        self,
        app: Flask,
        session: Callable[[], Session],
        heard: list[Session],
    ) -> None:
        committed = []
        for _ in range(2):
            with app.app_context():
                current_session.add(User(name="ann"))
                current_session.commit()
                committed.append(session())
        assert heard == committed

    def test_inspection_finds_the_current_session(
        self, app: Flask, session: FlaskScopedSession[Session], ann: User
    ) -> None:
        with app.app_context():
            found = current_session.get_one(User, ann.id)
            state = inspect(found)
            assert state.persistent
            assert state.session is session()
            assert state.session == current_session
            assert inspect(current_session.connection()).has_table("users")
        assert state.detached


class TestCommandLine:
    def test_a_command_has_a_session_and_lets_go_of_it(
        self,
        app: Flask,
        session: FlaskScopedSession[Session],
        engine: Engine,
        held: Held,
    ) -> None:
        @app.cli.command("enrol")
        @click.argument("name")
        def enrol(name: str) -> None:
            with current_session.begin():
                current_session.add(User(name=name))
            click.echo(current_session.scalars(select(User.name)).one())

        result = app.test_cli_runner().invoke(args=["enrol", "ann"])
        assert result.exception is None
        assert result.output == "ann\n"
        assert held.count == 0
        assert count_users(engine) == 1

    def test_a_command_that_fails_lets_go_of_it_too(
        self,
        app: Flask,
        session: FlaskScopedSession[Session],
        engine: Engine,
        held: Held,
    ) -> None:
        @app.cli.command("fail")
        def fail() -> None:
            current_session.add(User(name="ann"))
            current_session.flush()
            raise LookupError

        result = app.test_cli_runner().invoke(args=["fail"])
        assert isinstance(result.exception, LookupError)
        assert held.count == 0
        assert count_users(engine) == 0

    def test_the_shell_has_a_session(
        self,
        app: Flask,
        session: FlaskScopedSession[Session],
        engine: Engine,
        held: Held,
    ) -> None:
        app.shell_context_processor(lambda: {"session": current_session, "User": User})
        typed = (
            "session.add(User(name='ann'))\n"
            "session.commit()\n"
            "print('found', session.get_one(User, session.query(User).one().id).name)\n"
        )
        result = app.test_cli_runner().invoke(shell_command, input=typed)
        assert "found ann" in result.output
        assert held.count == 0
        assert count_users(engine) == 1


class TestWorkers:
    """Job queues, by the recipe of theirs and Flask's: a context for each job."""

    @staticmethod
    def in_context(app: Flask, job: Callable[[], T]) -> T:
        """Run a job as a `celery.Task.__call__` or an `rq` job function does."""
        with app.app_context():
            return job()

    def test_each_job_has_a_session_of_its_own(
        self,
        app: Flask,
        session: FlaskScopedSession[Session],
        engine: Engine,
        held: Held,
    ) -> None:
        used: list[Session] = []

        def enrol() -> None:
            assert not current_session.in_transaction()
            used.append(session())
            current_session.add(User(name="ann"))
            current_session.flush()
            if len(used) % 2:
                raise LookupError
            current_session.commit()

        jobs: Queue[Callable[[], None] | None] = Queue()
        failed: list[LookupError] = []

        def attempt(job: Callable[[], None]) -> None:
            try:
                self.in_context(app, job)
            except LookupError as error:
                failed.append(error)

        def work() -> None:
            while job := jobs.get():
                attempt(job)

        for _ in range(4):
            jobs.put(enrol)
        jobs.put(None)
        worker = threading.Thread(target=work)
        worker.start()
        worker.join()
        assert held.count == 0
        assert len(failed) == 2
        assert len({id(one) for one in used}) == 4
        assert count_users(engine) == 2

    def test_an_eager_job_leaves_the_session_of_its_request_alone(
        self,
        app: Flask,
        session: FlaskScopedSession[Session],
        ann: User,
        held: Held,
    ) -> None:
        def read() -> str:
            current_session.info["of"] = "the job"
            return current_session.get_one(User, ann.id).name

        @app.get("/")
        def view() -> str:
            mine = session()
            current_session.info["of"] = "the request"
            name = self.in_context(app, read)
            assert session() is mine
            assert current_session.info == {"of": "the request"}
            assert not mine.identity_map
            return name

        assert app.test_client().get("/").text == "ann"
        assert held.count == 0
