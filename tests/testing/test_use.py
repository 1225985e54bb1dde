"""`isolate`: how the block is used, what it refuses and what it gives back."""

from __future__ import annotations

import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

import factory
import pytest
from flask import Flask, Response
from sqlalchemy import Engine, StaticPool, create_engine, event, func, select, text
from sqlalchemy.exc import DBAPIError, IntegrityError, ProgrammingError
from sqlalchemy.ext.horizontal_shard import ShardedSession
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from flask_sqlalchemy_session import FlaskScopedSession, current_session
from flask_sqlalchemy_session.testing import IsolationError, isolate
from tests.support import Base, Held, User

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

S = TypeVar("S", bound=Session)


@pytest.fixture(autouse=True)
def nothing_is_left(engine: Engine, held: Held) -> Iterator[None]:
    """Look, after each test here, for what the block left behind."""
    pool = engine.pool
    yield
    assert held.count == 0
    assert engine.pool is pool
    assert stored(engine) == 0


def stored(engine: Engine) -> int:
    with engine.connect() as connection:
        return connection.scalars(select(func.count()).select_from(User)).one()


def names(session: FlaskScopedSession[S]) -> list[str]:
    return [*session.scalars(select(User.name).order_by(User.name))]


def store(app: Flask, session: FlaskScopedSession[S], name: str) -> None:
    with app.app_context():
        session.add(User(name=name))
        session.commit()


@pytest.fixture
def other(app: Flask, engine: Engine) -> FlaskScopedSession[Session]:
    """Another scoped session of the same application and engine."""
    return FlaskScopedSession(sessionmaker(engine), app, name="other")


class TestRequests:
    @pytest.fixture
    def app(self, app: Flask) -> Flask:
        @app.post("/users/<name>")
        def add(name: str) -> str:
            current_session.add(User(name=name))
            current_session.commit()
            return name

        @app.get("/users")
        def get() -> list[str]:
            return [*current_session.scalars(select(User.name).order_by(User.name))]

        @app.get("/async/users")
        async def get_async() -> list[str]:
            return get()

        @app.get("/stream")
        def stream() -> Response:
            return Response(name for name in current_session.scalars(select(User.name)))

        return app

    def test_see_test_data_and_each_other(
        self, app: Flask, session: FlaskScopedSession[Session]
    ) -> None:
        client = app.test_client()
        with isolate(session):
            store(app, session, "ann")
            client.post("/users/bob")
            assert client.get("/users").json == ["ann", "bob"]
        assert client.get("/users").json == []

    def test_work_with_a_context_held_open(
        self, app: Flask, session: FlaskScopedSession[Session]
    ) -> None:
        with isolate(session), app.app_context():
            assert names(session) == []
            app.test_client().post("/users/bob")
            session.rollback()
            assert names(session) == ["bob"]

    def test_can_run_in_a_thread(
        self, app: Flask, session: FlaskScopedSession[Session]
    ) -> None:
        answers: list[object] = []

        def request() -> None:
            client = app.test_client()
            client.post("/users/bob")
            answers.append(client.get("/users").json)

        with isolate(session):
            store(app, session, "ann")
            thread = threading.Thread(target=request)
            thread.start()
            thread.join()
        assert answers == [["ann", "bob"]]

    def test_can_run_at_the_same_time(
        self, app: Flask, session: FlaskScopedSession[Session]
    ) -> None:
        start = threading.Barrier(4)

        def requests(number: int) -> None:
            client = app.test_client()
            start.wait()
            for turn in range(10):
                assert client.post(f"/users/{number}-{turn}").status_code == 200
                assert client.get("/users").status_code == 200

        with isolate(session):
            threads = [
                threading.Thread(target=requests, args=[number]) for number in range(4)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            with app.app_context():
                assert len(names(session)) == 40

    def test_can_stream(self, app: Flask, session: FlaskScopedSession[Session]) -> None:
        with isolate(session):
            store(app, session, "ann")
            response = app.test_client().get("/stream")
            store(app, session, "bob")
            assert "ann" in response.text


def test_a_memory_database_of_the_default_pool_belongs_to_one_thread(
    app: Flask,
) -> None:
    memory = create_engine("sqlite://")
    Base.metadata.create_all(memory)
    session = FlaskScopedSession(sessionmaker(memory), app)
    raised: list[ProgrammingError] = []

    def read() -> None:
        try:
            with app.app_context():
                names(session)
        except ProgrammingError as error:
            raised.append(error)

    with isolate(session):
        store(app, session, "ann")
        thread = threading.Thread(target=read)
        thread.start()
        thread.join()
        assert "same thread" in str(raised)
        with app.app_context():
            assert names(session) == ["ann"]
    memory.dispose()


def test_factory_boy_makes_test_data(
    app: Flask, session: FlaskScopedSession[Session]
) -> None:
    class UserFactory(factory.alchemy.SQLAlchemyModelFactory):
        class Meta:
            model = User
            sqlalchemy_session = session
            sqlalchemy_session_persistence = "commit"

        name = factory.Sequence(lambda number: f"user {number}")

    with isolate(session):
        with app.app_context():
            UserFactory.create_batch(3)
        with app.app_context():
            assert len(names(session)) == 3


class TestTheObjectAfterTheBlock:
    def test_commits_for_good(
        self, app: Flask, session: FlaskScopedSession[Session], engine: Engine
    ) -> None:
        with isolate(session):
            store(app, session, "ann")
        store(app, session, "bob")
        assert stored(engine) == 1
        with app.app_context():
            assert names(session) == ["bob"]
            session.delete(session.scalars(select(User)).one())
            session.commit()

    def test_can_be_isolated_again(
        self, app: Flask, session: FlaskScopedSession[Session]
    ) -> None:
        block = isolate(session)
        for _ in range(2):
            with block:
                store(app, session, "ann")
                with app.app_context():
                    assert names(session) == ["ann"]

    def test_is_left_when_the_body_raises(
        self, app: Flask, session: FlaskScopedSession[Session], held: Held
    ) -> None:
        with app.app_context():
            with pytest.raises(LookupError), isolate(session):  # noqa: PT012  # the block
                session.add(User(name="ann"))
                session.flush()
                raise LookupError
            assert held.count == 0
            assert names(session) == []

    def test_has_no_session_that_the_block_left_open(
        self, app: Flask, session: FlaskScopedSession[Session], held: Held
    ) -> None:
        with app.app_context():
            with isolate(session):
                inside = session()
                session.add(User(name="ann"))
                session.flush()
            assert held.count == 0
            assert session() is not inside
            assert inside.scalars(select(User)).all() == []
            assert not {"get_bind", "connection"} & {*vars(inside)}
            inside.close()

    def test_has_no_session_left_open_in_another_context(
        self, app: Flask, session: FlaskScopedSession[Session], held: Held
    ) -> None:
        block = isolate(session)
        block.__enter__()
        with app.app_context():
            session.add(User(name="ann"))
            session.flush()
            with app.app_context():
                block.__exit__(None, None, None)
            assert held.count == 0
            assert names(session) == []

    def test_keeps_the_two_phase_commit_of_a_session(
        self, app: Flask, engine: Engine
    ) -> None:
        session = FlaskScopedSession(sessionmaker(engine, twophase=True), app)
        with isolate(session), app.app_context():
            session.add(User(name="ann"))
            session.commit()
            inside = session()
        assert inside.twophase


def test_a_session_lives_before_the_block_and_after_it(
    app: Flask, session: FlaskScopedSession[Session], engine: Engine
) -> None:
    with app.app_context():
        before = session()
        assert names(session) == []
        if isinstance(engine.pool, StaticPool):
            before.commit()  # the block needs its connection
        with app.app_context():
            with isolate(session):
                store(app, session, "ann")
            assert stored(engine) == 0
        assert session() is before
        assert names(session) == []


class TestTheBlock:
    def test_can_not_be_nested_on_one_object(
        self, app: Flask, session: FlaskScopedSession[Session]
    ) -> None:
        with isolate(session):
            store(app, session, "ann")
            with pytest.raises(RuntimeError, match="isolated already"):
                isolate(session).__enter__()
            with app.app_context():
                assert names(session) == ["ann"]

    def test_can_not_be_given_an_object_twice(
        self, session: FlaskScopedSession[Session]
    ) -> None:
        with pytest.raises(RuntimeError, match="isolated already"):
            isolate(session, session).__enter__()
        with isolate(session):
            pass

    def test_can_not_be_given_another_scoped_session(self, engine: Engine) -> None:
        plain: Any = scoped_session(sessionmaker(engine))
        with pytest.raises(TypeError, match="takes a FlaskScopedSession"):
            isolate(plain)

    def test_can_not_be_entered_where_the_session_is_open(
        self,
        app: Flask,
        session: FlaskScopedSession[Session],
        other: FlaskScopedSession[Session],
    ) -> None:
        with app.app_context():
            session()
            with pytest.raises(RuntimeError, match=r"'default' is open.*remove"):
                isolate(other, session).__enter__()
            session.remove()
            with isolate(other, session):
                pass

    def test_decorates_a_function(
        self, app: Flask, session: FlaskScopedSession[Session]
    ) -> None:
        @isolate(session)
        def add(name: str) -> list[str]:
            """Add a user."""
            store(app, session, name)
            with app.app_context():
                return names(session)

        assert add("ann") == ["ann"]
        assert add(name="bob") == ["bob"]
        assert add.__doc__ == "Add a user."

    def test_does_not_decorate_what_runs_after_the_call(
        self, session: FlaskScopedSession[Session]
    ) -> None:
        def fixture() -> Iterator[None]:
            yield

        async def coroutine() -> None:
            pass

        class Case:
            pass

        for wrong in (fixture, coroutine, Case):
            with pytest.raises(TypeError, match="with isolate"):
                isolate(session)(wrong)

    def test_does_not_connect_before_a_session_does(
        self, app: Flask, session: FlaskScopedSession[Session], held: Held
    ) -> None:
        with isolate(session), app.app_context():
            session()
            assert held.count == 0
            names(session)
            assert held.count == 1

    def test_leaves_the_factory_in_sight(
        self, app: Flask, session: FlaskScopedSession[Session]
    ) -> None:
        made = session.session_factory
        with isolate(session):
            assert session.session_factory is made
            session.configure(info={"configured": True})
            with app.app_context():
                assert session.info == {"configured": True}
                assert isinstance(session(), getattr(made, "class_"))  # noqa: B009  # a sessionmaker's

    def test_serves_two_objects_on_one_engine(
        self,
        app: Flask,
        session: FlaskScopedSession[Session],
        other: FlaskScopedSession[Session],
    ) -> None:
        with isolate(session, other), app.app_context():
            assert names(session) == names(other) == []
            session.add(User(name="ann"))
            session.flush()
            other.add(User(name="bob"))
            other.flush()
            session.commit()
            other.commit()
            assert names(session) == names(other) == ["ann", "bob"]
            session.commit()
            session.add(User(name="cid"))
            session.commit()
            other.rollback()
            assert names(other) == ["ann", "bob", "cid"]

    def test_of_one_object_contains_that_of_another(
        self,
        app: Flask,
        session: FlaskScopedSession[Session],
        other: FlaskScopedSession[Session],
    ) -> None:
        with isolate(session):
            store(app, session, "ann")
            with isolate(other):
                store(app, other, "bob")
                with app.app_context():
                    assert names(session) == names(other) == ["ann", "bob"]
            with app.app_context():
                assert names(session) == ["ann"]

    def test_isolates_the_engine_itself_once_it_is_reached(
        self, app: Flask, session: FlaskScopedSession[Session], engine: Engine
    ) -> None:
        with isolate(session), app.app_context():
            names(session)
            with engine.begin() as connection:
                connection.execute(text("INSERT INTO users (name) VALUES ('ann')"))
            with engine.connect() as connection:
                connection.execute(text("INSERT INTO users (name) VALUES ('bob')"))
            engine.dispose()
            assert stored(engine) == 1
            assert names(session) == ["ann"]

    def test_ends_a_connection_that_outlives_it(
        self, app: Flask, session: FlaskScopedSession[Session], engine: Engine
    ) -> None:
        with isolate(session):
            store(app, session, "ann")
            connection = engine.connect()
            connection.execute(select(User))
        with pytest.raises(IsolationError, match="has ended"):
            connection.execute(select(User))
        connection.close()

    def test_shows_listeners_what_they_see_without_it(
        self, app: Flask, session: FlaskScopedSession[Session], engine: Engine
    ) -> None:
        seen: list[str] = []

        @event.listens_for(engine, "before_cursor_execute")
        def _(_c: object, _cursor: object, statement: str, *_: object) -> None:
            seen.append(statement.partition(" ")[0])

        with isolate(session):
            with app.app_context():
                store(app, session, "ann")
                names(session)
                session.rollback()
            assert seen == ["INSERT", "SELECT"]

    def test_forgets_the_options_of_one_session_in_the_next(
        self, app: Flask, session: FlaskScopedSession[Session]
    ) -> None:
        options = {"schema_translate_map": {None: "nowhere"}, "mine": True}
        with isolate(session):
            with app.app_context():
                session.connection(execution_options=options)
            with app.app_context():
                assert names(session) == []
                assert "mine" not in session.connection().get_execution_options()

    def test_lets_a_session_ask_for_an_isolation_level(
        self, app: Flask, session: FlaskScopedSession[Session]
    ) -> None:
        with isolate(session):
            with app.app_context():
                session.connection(execution_options={"isolation_level": "AUTOCOMMIT"})
                session.execute(text("INSERT INTO users (name) VALUES ('ann')"))
                session.rollback()
            with app.app_context():
                session.connection(
                    execution_options={"isolation_level": "SERIALIZABLE"}
                )
                session.execute(text("INSERT INTO users (name) VALUES ('bob')"))
                session.rollback()
                assert names(session) == ["ann"]

    def test_reaches_the_engine_of_an_option_engine(
        self, app: Flask, engine: Engine
    ) -> None:
        reading = engine.execution_options(isolation_level="AUTOCOMMIT")

        class ReadWriteSession(Session):
            def get_bind(self, mapper: Any = None, **kw: Any) -> Engine:
                return engine if self.info else reading

        session = FlaskScopedSession(ReadWriteSession, app)
        with isolate(session):
            with app.app_context():
                assert names(session) == []
            with app.app_context():
                session.info["writing"] = True
                session.add(User(name="ann"))
                session.commit()
                session.add(User(name="bob"))
                session.flush()
                session.rollback()
            with app.app_context():
                assert names(session) == ["ann"]

    def test_takes_statements_that_end_a_transaction(
        self, app: Flask, session: FlaskScopedSession[Session], engine: Engine
    ) -> None:
        with isolate(session):
            with app.app_context():
                session.execute(text("INSERT INTO users (name) VALUES ('ann')"))
                session.execute(text("COMMIT"))
                session.execute(text("INSERT INTO users (name) VALUES ('bob')"))
                session.execute(text("/* enough */ ROLLBACK"))
            with app.app_context():
                assert names(session) == ["ann"]

    def test_takes_work_done_on_the_driver_connection(
        self, app: Flask, session: FlaskScopedSession[Session]
    ) -> None:
        insert = "INSERT INTO users (name) VALUES ('ann')"
        with isolate(session):
            with app.app_context():
                driver = session.connection().connection.driver_connection
                assert driver is not None
                driver.execute(insert)
                driver.commit()
                driver.execute(insert)
                driver.rollback()
                driver.cursor().execute(insert)
                driver.rollback()
            with app.app_context():
                assert names(session) == ["ann"]


@pytest.mark.timeout(30)
@pytest.mark.parametrize("engine", ["sqlite-memory"], indirect=True)
def test_a_long_statement_takes_little_memory_and_time(
    app: Flask, session: FlaskScopedSession[Session]
) -> None:
    resource = pytest.importorskip("resource")  # which Windows has not
    long = "x" * 4_000_000
    with isolate(session), app.app_context():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        session.connection().exec_driver_sql(f"SELECT '{long}'")
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        session.connection().exec_driver_sql(f'SELECT 1 AS "{long}"')
    assert after < before + 200_000


def test_a_sharded_session_is_isolated_on_each_engine(
    app: Flask, engine: Engine
) -> None:
    second = create_engine("sqlite://")
    Base.metadata.create_all(second)

    def make() -> ShardedSession:
        return ShardedSession(
            shards={"a": engine, "b": second},
            shard_chooser=lambda mapper, instance, clause=None: (
                "a" if instance is None or instance.name == "ann" else "b"
            ),
            identity_chooser=lambda *args, **kw: ["a", "b"],
            execute_chooser=lambda context: ["a", "b"],
        )

    session = FlaskScopedSession(make, app)
    with isolate(session):
        with app.app_context():
            session.add_all([User(name="ann"), User(name="bob")])
            session.commit()
        with app.app_context():
            assert sorted(session.scalars(select(User.name))) == ["ann", "bob"]
        assert stored(engine) == stored(second) == 1
    assert stored(second) == 0
    second.dispose()


class TestRefused:
    def test_a_session_bound_to_a_connection_from_outside(
        self, app: Flask, engine: Engine
    ) -> None:
        with engine.connect() as connection:
            session = FlaskScopedSession(sessionmaker(connection), app)
            with (
                isolate(session),
                app.app_context(),
                pytest.raises(IsolationError, match="Bind the session to the eng"),
            ):
                names(session)

    def test_a_session_that_its_factory_has_used(
        self, app: Flask, engine: Engine, held: Held
    ) -> None:
        def make() -> Session:
            session = Session(engine)
            session.execute(text("SELECT 1"))
            return session

        session = FlaskScopedSession(make, app)
        with isolate(session), app.app_context():
            with pytest.raises(IsolationError, match="in a transaction"):
                session()
            assert held.count == 0

    def test_a_rollback_that_a_view_swallows(
        self, app: Flask, session: FlaskScopedSession[Session]
    ) -> None:
        with (  # noqa: PT012  # the end of the block
            pytest.raises(IsolationError, match="which can't undo"),
            isolate(session),
            app.app_context(),
            suppress(IsolationError),
        ):
            session.add(User(name="ann"))
            session.flush()
            store(app, session, "bob")
            session.rollback()

    def test_a_savepoint_around_what_another_session_commits(
        self, app: Flask, session: FlaskScopedSession[Session]
    ) -> None:
        with (  # noqa: PT012  # the end of the block
            pytest.raises(IsolationError, match="A savepoint"),
            isolate(session),
            suppress(IsolationError),
            app.app_context(),
        ):
            savepoint = session.begin_nested()
            session.add(User(name="ann"))
            session.flush()
            store(app, session, "bob")
            with pytest.raises(IsolationError, match="A savepoint"):
                savepoint.rollback()

    def test_a_two_phase_commit_by_hand(
        self, app: Flask, session: FlaskScopedSession[Session]
    ) -> None:
        prepare = text("PREPARE TRANSACTION 'x'")
        with (
            isolate(session),
            app.app_context(),
            pytest.raises(IsolationError, match="two phases"),
        ):
            session.execute(prepare)

    def test_a_two_phase_commit_by_a_session(self, app: Flask, engine: Engine) -> None:
        session = FlaskScopedSession(sessionmaker(engine, twophase=True), app)
        with isolate(session), app.app_context():
            session.add(User(name="ann"))
            with pytest.raises(IsolationError, match="two phases"):
                session.prepare()
            session.commit()
            assert names(session) == ["ann"]


class TestAnEndThatFails:
    def test_gives_back_every_connection(
        self, app: Flask, engine: Engine, held: Held, tmp_path: Path
    ) -> None:
        second = create_engine(f"sqlite:///{tmp_path}/second.sqlite3")
        Base.metadata.create_all(second)
        also_held = Held(second)
        pool = second.pool

        class BothSession(Session):
            def get_bind(self, mapper: Any = None, **kw: Any) -> Engine:
                return second if self.info else engine

        session = FlaskScopedSession(BothSession, app)
        block = isolate(session)
        with pytest.raises(IsolationError, match="ended by something else"), block:  # noqa: PT012  # the end of the block
            store(app, session, "ann")
            with app.app_context():
                session.info["second"] = True
                names(session)
                driver = session.connection().connection.driver_connection
                assert driver is not None
                with suppress(IsolationError):
                    driver.shared.driver.commit()  # as the block can't see
                    names(session)
        assert (held.count, also_held.count) == (0, 0)
        assert second.pool is pool
        second.dispose()

    def test_gives_back_a_connection_that_was_lost(
        self, app: Flask, tmp_path: Path
    ) -> None:
        lost = create_engine(f"sqlite:///{tmp_path}/lost.sqlite3")
        Base.metadata.create_all(lost)
        held, pool = Held(lost), lost.pool
        session = FlaskScopedSession(sessionmaker(lost), app)
        with (  # noqa: PT012  # the end of the block
            pytest.raises(IsolationError, match="was lost"),
            isolate(session),
            app.app_context(),
        ):
            names(session)
            driver: Any = session.connection().connection.driver_connection
            driver.shared.driver.close()
            session.remove()
        assert held.count == 0
        assert lost.pool is pool
        with app.app_context():
            assert names(session) == []
        lost.dispose()


class TestASingleConnection:
    """With `StaticPool`, what is open before the block shares its connection."""

    @pytest.fixture
    def engine(self) -> Iterator[Engine]:
        engine = create_engine("sqlite://", poolclass=StaticPool)
        Base.metadata.create_all(engine)
        yield engine
        engine.dispose()

    @pytest.fixture
    def held(self, engine: Engine) -> Held:
        # `StaticPool` does not tell of each return when two share its connection.
        return Held(create_engine("sqlite://"))

    def test_in_a_transaction_is_refused(
        self, app: Flask, session: FlaskScopedSession[Session], engine: Engine
    ) -> None:
        with engine.connect() as connection:
            connection.execute(text("INSERT INTO users (name) VALUES ('ann')"))
            with (
                isolate(session),
                app.app_context(),
                pytest.raises(IsolationError, match="before isolate"),
            ):
                names(session)

    def test_that_is_rolled_back_by_another_user_is_noticed(
        self, app: Flask, session: FlaskScopedSession[Session], engine: Engine
    ) -> None:
        noticed = False
        outside = engine.connect()
        block = isolate(session)
        with pytest.raises(IsolationError, match="ended by something else"), block:  # noqa: PT012  # the end of the block
            store(app, session, "ann")
            outside.close()
            try:
                with app.app_context():
                    names(session)
            except IsolationError:
                noticed = True
        assert noticed


class TestSessionsAtTheSameTime:
    def test_keep_what_is_written_around_one_that_only_reads(
        self,
        app: Flask,
        session: FlaskScopedSession[Session],
        other: FlaskScopedSession[Session],
    ) -> None:
        with isolate(session, other), app.app_context():
            session.add(User(name="ann"))
            session.flush()
            assert names(other) == ["ann"]
            session.add(User(name="bob"))
            session.flush()
            other.rollback()
            session.commit()
            assert names(session) == ["ann", "bob"]

    def test_go_on_when_one_has_failed(
        self,
        app: Flask,
        session: FlaskScopedSession[Session],
        other: FlaskScopedSession[Session],
    ) -> None:
        wrong = text("SELECT nonsense FROM users")
        with isolate(session, other), app.app_context():
            assert names(session) == []
            with pytest.raises(DBAPIError):
                session.execute(wrong)
            other.add(User(name="ann"))
            other.commit()
            session.rollback()
            assert names(session) == ["ann"]

    def test_keep_what_each_commits_in_any_order(
        self,
        app: Flask,
        session: FlaskScopedSession[Session],
        other: FlaskScopedSession[Session],
    ) -> None:
        with isolate(session, other), app.app_context():
            session.add(User(name="ann"))
            session.flush()
            other.add(User(name="bob"))
            other.flush()
            session.add(User(name="cid"))
            session.commit()
            with pytest.raises(IntegrityError), other.begin_nested():
                other.execute(text("INSERT INTO users (id) VALUES (NULL)"))
            other.commit()
            assert names(session) == ["ann", "bob", "cid"]

    def test_can_not_undo_what_was_written_inside(
        self,
        app: Flask,
        session: FlaskScopedSession[Session],
        other: FlaskScopedSession[Session],
    ) -> None:
        with (  # noqa: PT012  # the end of the block
            pytest.raises(IsolationError),
            isolate(session, other),
            app.app_context(),
        ):
            session.add(User(name="ann"))
            session.flush()
            other.add(User(name="bob"))
            other.flush()
            session.add(User(name="cid"))
            session.commit()
            with pytest.raises(IsolationError):
                other.rollback()
            assert {"ann", "cid"} <= {*names(session)}
