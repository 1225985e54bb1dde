"""Promises 3 and 4: whatever fails, the connection is back and nothing is left over.

Each test runs without the cyclic collector, which would hide what is held.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING
from weakref import ref

import pytest
from flask import (
    Flask,
    abort,
    appcontext_popped,
    appcontext_tearing_down,
    copy_current_request_context,
    g,
    request_tearing_down,
)
from sqlalchemy import create_engine, event, select, text
from sqlalchemy.orm import Mapped, Session, mapped_column, sessionmaker

from flask_sqlalchemy_session import FlaskScopedSession, current_session
from tests.faults import FAULTS, Side, fail
from tests.scope.flask_versions import before_flask_3_2
from tests.support import (
    Base,
    Held,
    OopsError,
    User,
    allows,
    broken_rollback,
    many_connections,
    raises,
    use,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from sqlalchemy import Engine
    from sqlalchemy.orm import SessionTransaction

pytestmark = pytest.mark.usefixtures("no_collector")


class Other(Base):
    __tablename__ = "others"

    id: Mapped[int] = mapped_column(primary_key=True)


class SyncSide(Side[FlaskScopedSession[Session]]):
    def use(self) -> None:
        use(self.session())

    def does(self, *steps: Callable[[], object]) -> Callable[..., str]:
        def work(*_: object) -> str:
            for step in steps:
                step()
            return "done"

        return work


OWN: list[Callable[[Flask, SyncSide], object]] = []
"""What only a sync session can meet."""


def fault(
    function: Callable[[Flask, SyncSide], object],
) -> Callable[[Flask, SyncSide], object]:
    OWN.append(function)
    return function


@fault
def signal_receivers_that_use_the_session(app: Flask, side: SyncSide) -> object:
    session = side.set_up()
    side.view(side.use)

    def receive(sender: Flask, **_: object) -> None:
        use(session())

    def receive_outside(sender: Flask, **_: object) -> None:
        with pytest.raises(RuntimeError):
            use(session())

    with (
        request_tearing_down.connected_to(receive, app),
        appcontext_tearing_down.connected_to(receive, app),
        appcontext_popped.connected_to(receive_outside, app),
    ):
        assert app.test_client().get("/").status_code == 200
    return None


@fault
def a_listener_that_uses_the_session_while_it_closes(
    app: Flask, side: SyncSide
) -> object:
    session = side.set_up()
    ended = []

    @app.get("/")
    def index() -> str:
        use(session())
        event.listen(session(), "after_transaction_end", listen)
        return ""

    def listen(_: Session, transaction: SessionTransaction) -> None:
        if transaction.parent is None:
            current_session.execute(text("SELECT 1"))
            ended.append(transaction)

    assert app.test_client().get("/").status_code == 200
    assert ended
    return ended


@fault
def a_thread_with_a_copy_of_the_request_context(app: Flask, side: SyncSide) -> object:
    session = side.set_up()
    ended = threading.Event()
    threads = []

    @app.get("/")
    def index() -> str:
        use(session())

        @copy_current_request_context
        def work() -> None:
            assert ended.wait(30)
            assert "mark" not in session.info
            use(session())

        threads.append(threading.Thread(target=work))
        threads[0].start()
        return ""

    app.test_client().get("/")
    ended.set()
    threads[0].join()
    return None


@fault
def a_failed_flush(app: Flask, side: SyncSide) -> object:
    session = side.set_up()

    @app.get("/")
    def index() -> str:
        use(session())
        try:
            with session.begin_nested():
                session.execute(text("nonsense"))
        except Exception:  # noqa: BLE001  # whichever the database raises
            session.begin_nested()
        session.execute(text("nonsense"))
        return ""

    assert app.test_client().get("/").status_code == 500
    return None


@pytest.mark.parametrize("fault", [*FAULTS, *OWN], ids=lambda fault: fault.__name__)
def test_the_connection_is_back_and_nothing_leaks_after(
    fault: Callable[[Flask, SyncSide], object], app: Flask, engine: Engine, held: Held
) -> None:
    side = SyncSide(app, lambda: FlaskScopedSession(sessionmaker(engine), app))
    kept = fault(app, side)
    assert held.count == 0
    with allows(OopsError), app.app_context():  # the hooks that raise still do
        session = side.session()
        assert "mark" not in session.info
        assert not session.in_transaction()
        assert not session.identity_map
        assert session.scalars(select(User)).all() == []
    assert held.count == 0
    del kept


@pytest.fixture
def second(tmp_path: Path) -> Iterator[Engine]:
    """A second database."""
    engine = create_engine(f"sqlite:///{tmp_path}/second.sqlite3")
    Base.metadata.create_all(engine)
    yield engine
    engine.dispose()


@many_connections
@pytest.mark.parametrize("first_used", [User, Other])
@pytest.mark.parametrize("broken", ["first", "second", "both"])
def test_both_databases_of_a_session_are_released_when_closing_it_fails(
    first_used: type[User | Other],
    broken: str,
    app: Flask,
    engine: Engine,
    second: Engine,
) -> None:
    held, held_second = Held(engine), Held(second)
    session = FlaskScopedSession(sessionmaker(binds={User: engine, Other: second}), app)
    engines = {"first": [engine], "second": [second], "both": [engine, second]}

    def use_both() -> None:
        with app.app_context():
            session.info["mark"] = True
            session.execute(select(first_used))
            session.execute(select(User))
            session.execute(select(Other))
            assert (held.count, held_second.count) == (1, 1)

    with broken_rollback(*engines[broken]):
        with raises(OopsError) as caught:
            use_both()
        assert (held.count, held_second.count) == (0, 0)
    with app.app_context():
        assert "mark" not in session.info
        assert session.scalars(select(User)).all() == []
        assert session.scalars(select(Other)).all() == []
    assert (held.count, held_second.count) == (0, 0)
    del caught


@many_connections
def test_a_listener_that_always_fails_keeps_no_connection(
    app: Flask, session: FlaskScopedSession[Session], held: Held
) -> None:
    def listen(*_: object) -> None:
        raise OopsError

    def use_and_listen() -> None:
        with app.app_context():
            use(session())
            event.listen(session(), "after_transaction_end", listen)

    with raises(OopsError) as caught:
        use_and_listen()
    assert held.count == 0
    del caught


@many_connections
@pytest.mark.parametrize("broken", ["default", "reports"])
def test_both_objects_of_an_app_are_released_when_closing_one_fails(
    broken: str, app: Flask, engine: Engine, second: Engine
) -> None:
    sessions = [
        FlaskScopedSession(sessionmaker(engine), app),
        FlaskScopedSession(sessionmaker(second), app, name="reports"),
    ]
    helds = [Held(engine), Held(second)]

    def use_both() -> None:
        with app.app_context():
            for session in sessions:
                use(session())
            assert [held.count for held in helds] == [1, 1]

    with broken_rollback(engine if broken == "default" else second):
        with raises(OopsError) as caught:
            use_both()
        assert [held.count for held in helds] == [0, 0]
    with app.app_context():
        for session in sessions:
            assert "mark" not in session.info
            assert session.scalars(select(User)).all() == []
    assert [held.count for held in helds] == [0, 0]
    del caught


def test_of_several_sessions_that_fail_to_close_the_first_tells(
    app: Flask, memory: Engine
) -> None:
    class Failing(Session):
        def close(self) -> None:
            super().close()
            raise OopsError(self.info["name"])

    def use_all() -> None:
        with app.app_context():
            for session in sessions:
                session.info["name"] = session.name

    sessions = [
        FlaskScopedSession(sessionmaker(memory, class_=Failing), app, name=name)
        for name in ("first", "second", "third")
    ]
    with raises(OopsError, match="first"):
        use_all()


@pytest.mark.parametrize("kind", ["app_context", "test_request_context"])
@pytest.mark.parametrize("error", [None, OopsError()], ids=["none", "one"])
def test_a_hook_is_told_the_error_that_its_context_is_popped_with(
    error: BaseException | None,
    kind: str,
    app: Flask,
    session: FlaskScopedSession[Session],
) -> None:
    told: list[BaseException | None] = []
    app.teardown_appcontext(told.append)
    app.teardown_request(told.append)
    context = getattr(app, kind)()
    context.push()
    session()
    if error is None:
        context.pop()
    else:
        context.pop(error)
    assert set(told) == {error}


@many_connections
def test_a_transaction_that_failed_to_roll_back_does_not_reach_the_next_context(
    app: Flask, engine: Engine
) -> None:
    # Whose pool does not roll back what it gets back.
    careless = create_engine(engine.url, pool_reset_on_return=None)
    held = Held(careless)
    session = FlaskScopedSession(sessionmaker(careless), app)

    def fail_to_roll_back() -> None:
        with app.app_context():
            use(session())

    with broken_rollback(careless), raises(OopsError):
        fail_to_roll_back()
    with app.app_context():
        assert session.scalars(select(User)).all() == []
    assert held.count == 0
    careless.dispose()


def test_remove_gives_the_connection_back_when_closing_fails(
    app: Flask, session: FlaskScopedSession[Session], engine: Engine, held: Held
) -> None:
    with app.app_context():
        use(session())
        with broken_rollback(engine), pytest.raises(OopsError):
            session.remove()
        assert held.count == 0
        assert "mark" not in session.info
    assert held.count == 0


def test_a_late_hook_still_gets_this_contexts_session_when_another_hook_failed(
    app: Flask, engine: Engine, held: Held
) -> None:
    seen: list[object] = []
    session: FlaskScopedSession[Session]
    app.teardown_appcontext(lambda _: fail())  # runs last
    app.teardown_appcontext(lambda _: seen.append(session.info.get("mark")))
    session = FlaskScopedSession(sessionmaker(engine), app)

    def use_in_a_context() -> None:
        with app.app_context():
            use(session())

    with raises(OopsError) as caught:
        use_in_a_context()
    assert seen == [True]
    assert held.count == 0
    del caught


@before_flask_3_2("a context whose view or hook raised is the collector's")
@pytest.mark.parametrize("status", [200, 404, 500])
def test_a_request_that_failed_keeps_nothing_of_its_context(
    status: int, app: Flask, session: FlaskScopedSession[Session]
) -> None:
    alive: list[ref[object]] = []

    @app.get("/")
    def view() -> str:
        use(session())
        g.mark = OopsError()
        alive.extend([ref(session()), ref(g.mark)])
        if status == 500:
            raise OopsError
        if status == 404:
            abort(404)
        return "done"

    app.testing = False
    assert app.test_client().get("/").status_code == status
    assert [each() for each in alive] == [None, None]
