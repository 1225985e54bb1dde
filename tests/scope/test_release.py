"""Promises 3 and 4: whatever fails, the connection is back and nothing is left over.

Each test runs without the cyclic collector, which would hide what is held.
"""

from __future__ import annotations

import contextvars
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, TypeAlias

import pytest
from flask import (
    Flask,
    appcontext_popped,
    appcontext_tearing_down,
    copy_current_request_context,
    request_tearing_down,
    stream_with_context,
)
from sqlalchemy import create_engine, event, select, text
from sqlalchemy.orm import Mapped, Session, mapped_column, sessionmaker

from flask_sqlalchemy_session import FlaskScopedSession, current_session
from tests.support import (
    Base,
    Held,
    OopsError,
    User,
    broken_rollback,
    many_connections,
    use,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from sqlalchemy import Engine
    from sqlalchemy.orm import SessionTransaction

    # Sets the session up, before or after the fault's own hooks.
    SetUp: TypeAlias = Callable[[], FlaskScopedSession[Session]]
    # What a fault returns is kept until the connections are counted.
    Fault: TypeAlias = Callable[[Flask, SetUp], object]

pytestmark = pytest.mark.usefixtures("no_collector")

FAULTS: list[Fault] = []


class Other(Base):
    __tablename__ = "others"

    id: Mapped[int] = mapped_column(primary_key=True)


def fault(function: Fault) -> Fault:
    FAULTS.append(function)
    return function


def using_view(app: Flask, session: FlaskScopedSession[Session]) -> None:
    @app.get("/")
    def index() -> str:
        use(session())
        return "used"


def failing_view(app: Flask, session: FlaskScopedSession[Session]) -> None:
    @app.get("/")
    def index() -> str:
        use(session())
        raise OopsError


def fail(exc: BaseException | None = None) -> None:
    raise OopsError


def get_and_catch(app: Flask) -> pytest.ExceptionInfo[OopsError]:
    """Keep the exception, and with it every frame that it went through."""
    app.testing = True
    with pytest.raises(OopsError) as caught:
        app.test_client().get("/")
    return caught


@fault
def a_request(app: Flask, set_up: SetUp) -> object:
    using_view(app, set_up())
    assert app.test_client().get("/").text == "used"
    return None


@fault
def a_view_that_raises(app: Flask, set_up: SetUp) -> object:
    failing_view(app, set_up())
    assert app.test_client().get("/").status_code == 500
    return None


@fault
def a_view_that_raises_an_exception_that_is_kept(app: Flask, set_up: SetUp) -> object:
    failing_view(app, set_up())
    return get_and_catch(app)


@fault
def a_view_that_exits(app: Flask, set_up: SetUp) -> object:
    session = set_up()

    @app.get("/")
    def index() -> str:
        use(session())
        raise SystemExit

    with pytest.raises(SystemExit) as caught:
        app.test_client().get("/")
    return caught


@fault
def an_app_hook_before_ours_that_raises(app: Flask, set_up: SetUp) -> object:
    app.teardown_appcontext(fail)
    using_view(app, set_up())
    return get_and_catch(app)


@fault
def an_app_hook_after_ours_that_raises(app: Flask, set_up: SetUp) -> object:
    using_view(app, set_up())
    app.teardown_appcontext(fail)
    return get_and_catch(app)


@fault
def a_request_hook_before_ours_that_raises(app: Flask, set_up: SetUp) -> object:
    app.teardown_request(fail)
    using_view(app, set_up())
    return get_and_catch(app)


@fault
def a_request_hook_after_ours_that_raises(app: Flask, set_up: SetUp) -> object:
    using_view(app, set_up())
    app.teardown_request(fail)
    return get_and_catch(app)


@fault
def every_hook_raises_after_the_view_did(app: Flask, set_up: SetUp) -> object:
    app.teardown_appcontext(fail)
    app.teardown_request(fail)
    failing_view(app, set_up())
    app.teardown_appcontext(fail)
    app.teardown_request(fail)
    return get_and_catch(app)


@fault
def a_signal_receiver_that_raises(app: Flask, set_up: SetUp) -> object:
    using_view(app, set_up())

    def receive(sender: Flask, **_: object) -> None:
        raise OopsError

    with appcontext_tearing_down.connected_to(receive, app):
        return get_and_catch(app)


@fault
def hooks_that_use_the_session_late(app: Flask, set_up: SetUp) -> object:
    seen: list[Session] = []

    seen_in_view: list[Session] = []
    session: FlaskScopedSession[Session]
    app.teardown_appcontext(lambda _: seen.append(session()))
    app.teardown_request(lambda _: seen.append(session()))
    session = set_up()
    app.teardown_appcontext(lambda _: seen.append(session()))
    app.teardown_request(lambda _: seen.append(session()))

    @app.get("/")
    def index() -> str:
        use(session())
        seen_in_view.append(session())
        return ""

    app.test_client().get("/")
    assert seen == seen_in_view * 4
    return None


@fault
def a_hook_that_is_the_first_to_use_the_session(app: Flask, set_up: SetUp) -> object:
    session: FlaskScopedSession[Session]
    app.teardown_appcontext(lambda _: use(session()))
    session = set_up()

    @app.get("/")
    def index() -> str:
        return ""

    assert app.test_client().get("/").status_code == 200
    return None


@fault
def a_late_hook_after_a_view_that_raised(app: Flask, set_up: SetUp) -> object:
    session: FlaskScopedSession[Session]
    app.teardown_appcontext(lambda _: use(session()))
    session = set_up()
    failing_view(app, session)
    return get_and_catch(app)


@fault
def a_late_hook_that_also_raises(app: Flask, set_up: SetUp) -> object:
    def use_and_fail(exc: BaseException | None) -> None:
        use(session())
        raise OopsError

    session: FlaskScopedSession[Session]
    app.teardown_appcontext(use_and_fail)
    session = set_up()
    failing_view(app, session)
    return get_and_catch(app)


@fault
def a_hook_that_uses_the_session_after_remove(app: Flask, set_up: SetUp) -> object:
    def remove_and_use(exc: BaseException | None) -> None:
        session.remove()
        use(session())

    app.teardown_appcontext(remove_and_use)
    session = set_up()
    using_view(app, session)
    assert app.test_client().get("/").status_code == 200
    return None


@fault
def signal_receivers_that_use_the_session(app: Flask, set_up: SetUp) -> object:
    session = set_up()
    using_view(app, session)

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
def a_remove_that_raises_first(app: Flask, set_up: SetUp) -> object:
    session = set_up()
    using_view(app, session)
    # As a subclass would that extends it.
    session.remove = fail  # type: ignore[method-assign]
    caught = get_and_catch(app)
    del session.remove
    return caught


@fault
def a_remove_that_uses_the_session_again(app: Flask, set_up: SetUp) -> object:
    session = set_up()
    using_view(app, session)

    def remove() -> None:
        FlaskScopedSession.remove(session)
        use(session())

    session.remove = remove  # type: ignore[method-assign]
    assert app.test_client().get("/").status_code == 200
    del session.remove
    return None


@fault
def a_listener_that_uses_the_session_while_it_closes(
    app: Flask, set_up: SetUp
) -> object:
    session = set_up()
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
def a_thread_that_uses_the_session_after_the_request(
    app: Flask, set_up: SetUp
) -> object:
    session = set_up()
    ended = threading.Event()
    threads = []

    def work() -> None:
        assert ended.wait(30)
        assert "mark" not in session.info
        use(session())

    @app.get("/")
    def index() -> str:
        use(session())
        variables = contextvars.copy_context()
        threads.append(threading.Thread(target=variables.run, args=(work,)))
        threads[0].start()
        return ""

    app.test_client().get("/")
    ended.set()
    with pytest.warns(ResourceWarning, match="by a thread that inherited"):
        threads.pop().join()
    return None


@fault
def a_thread_with_a_copy_of_the_request_context(app: Flask, set_up: SetUp) -> object:
    session = set_up()
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


def streaming_view(app: Flask, session: FlaskScopedSession[Session]) -> None:
    @app.get("/")
    def index() -> Iterator[str]:
        use(session())

        def rows() -> Iterator[str]:
            for _ in range(3):
                use(session())
                yield "row "

        return stream_with_context(rows())


@fault
def a_stream_that_is_read_to_its_end(app: Flask, set_up: SetUp) -> object:
    streaming_view(app, set_up())
    assert app.test_client().get("/").text == "row row row "
    return None


@fault
def a_stream_whose_client_goes_away(app: Flask, set_up: SetUp) -> object:
    streaming_view(app, set_up())
    response = app.test_client().get("/", buffered=False)
    body = response.iter_encoded()
    assert next(iter(body)) == b"row "
    response.close()
    return response


@fault
def a_stream_whose_body_raises(app: Flask, set_up: SetUp) -> object:
    session = set_up()

    @app.get("/")
    def index() -> Iterator[str]:
        def rows() -> Iterator[str]:
            use(session())
            yield "row"
            raise OopsError

        return stream_with_context(rows())

    response = app.test_client().get("/")
    with pytest.raises(OopsError) as caught:
        response.get_data()
    response.close()
    return caught


@fault
def a_client_that_preserves_its_context(app: Flask, set_up: SetUp) -> object:
    session = set_up()
    using_view(app, session)
    with app.test_client() as client:
        client.get("/")
        use(session())
        client.get("/")
        use(session())
    return client


@fault
def a_command(app: Flask, set_up: SetUp) -> object:
    session = set_up()

    @app.cli.command("work")
    def work() -> None:
        use(session())

    result = app.test_cli_runner().invoke(args=["work"])
    assert result.exit_code == 0, result.output
    return result


@fault
def a_command_that_raises(app: Flask, set_up: SetUp) -> object:
    session = set_up()

    @app.cli.command("work")
    def work() -> None:
        use(session())
        raise OopsError

    result = app.test_cli_runner().invoke(args=["work"])
    assert isinstance(result.exception, OopsError)
    return result


@fault
def a_context_that_is_pushed_again(app: Flask, set_up: SetUp) -> object:
    session = set_up()
    context = app.app_context()
    with context:
        use(session())
        first = session()
    with context:
        assert session() is not first
        assert "mark" not in session.info
        use(session())
    return context


@fault
def a_context_that_its_own_g_refers_to(app: Flask, set_up: SetUp) -> object:
    session = set_up()
    with app.app_context() as context:
        use(session())
        context.g.context = context
    return None


@fault
def an_app_whose_teardown_is_its_own(app: Flask, set_up: SetUp) -> object:
    class Shop(Flask):
        def do_teardown_appcontext(self, *args: object, **kwargs: object) -> None:
            current_session.execute(text("SELECT 1"))
            raise OopsError

    shop = Shop("shop")
    session = set_up()
    session.init_app(shop)
    using_view(shop, session)
    return get_and_catch(shop)


@fault
def a_failed_flush(app: Flask, set_up: SetUp) -> object:
    session = set_up()

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


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_the_connection_is_back_and_nothing_leaks_after(
    fault: Fault, app: Flask, engine: Engine, held: Held
) -> None:
    made: list[FlaskScopedSession[Session]] = []

    def set_up() -> FlaskScopedSession[Session]:
        made.append(FlaskScopedSession(sessionmaker(engine), app))
        return made[0]

    kept = fault(app, set_up)
    assert held.count == 0
    with suppress(OopsError), app.app_context():  # the hooks that raise still do
        session = made[0]()
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
        with pytest.raises(OopsError) as caught:
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

    with pytest.raises(OopsError) as caught:
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
        with pytest.raises(OopsError) as caught:
            use_both()
        assert [held.count for held in helds] == [0, 0]
    with app.app_context():
        for session in sessions:
            assert "mark" not in session.info
            assert session.scalars(select(User)).all() == []
    assert [held.count for held in helds] == [0, 0]
    del caught


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

    with broken_rollback(careless), pytest.raises(OopsError):
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
    app.teardown_appcontext(fail)  # runs last
    app.teardown_appcontext(lambda _: seen.append(session.info.get("mark")))
    session = FlaskScopedSession(sessionmaker(engine), app)

    def use_in_a_context() -> None:
        with app.app_context():
            use(session())

    with pytest.raises(OopsError) as caught:
        use_in_a_context()
    assert seen == [True]
    assert held.count == 0
    del caught
