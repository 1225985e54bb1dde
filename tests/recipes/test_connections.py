"""Who holds a connection, how long, and what it may do."""

from __future__ import annotations

import http.client
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import create_engine, event, func, insert, select, text, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from flask_sqlalchemy_session import current_session
from flask_sqlalchemy_session.testing import IsolationError, isolate
from tests.documents.test_documents import ROOT
from tests.support import Held, User

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from types import ModuleType

    from sqlalchemy import Engine


@pytest.fixture
def two_connections(postgresql_url: str) -> Iterator[Engine]:
    """An engine whose third user waits in vain."""
    engine = create_engine(
        postgresql_url, pool_size=2, max_overflow=0, pool_timeout=0.01
    )
    yield engine
    engine.dispose()


class TestGiveItBack:
    @pytest.fixture
    def page(
        self, recipe: Callable[[str], ModuleType], two_connections: Engine
    ) -> Iterator[ModuleType]:
        module = recipe("def summarise(")
        module.Base.metadata.create_all(two_connections)
        # The page's application has had its first request.
        module.session.configure(bind=two_connections)
        with module.app.app_context():
            current_session.add(module.Letter(text="Dear all"))
            current_session.commit()
        module.watch(two_connections)
        yield module
        module.Base.metadata.drop_all(two_connections)

    def summarise_when(
        self, page: ModuleType, called: Callable[[str], str], *, expire: bool
    ) -> None:
        page.session.configure(expire_on_commit=expire)
        page.summarise.__globals__["ask_a_model"] = called
        response = page.app.test_client().post("/letters/1/summary")
        assert response.status_code == 200

    @pytest.mark.parametrize("expire", [False, True])
    def test_no_connection_is_held_by_one_that_commits_first_and_does_not_expire(
        self, expire: bool, page: ModuleType, two_connections: Engine
    ) -> None:
        held = Held(two_connections)
        during: list[int] = []

        def ask(text: str) -> str:
            during.append(held.count)
            return text

        self.summarise_when(page, ask, expire=expire)
        assert during == [1 if expire else 0]

    def test_the_view_that_waits_inside_a_transaction_is_named_and_no_other(
        self,
        page: ModuleType,
        two_connections: Engine,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """While both wait at the same time, the pool has one connection left."""
        both_wait = threading.Barrier(3, timeout=30)
        go_on = threading.Event()
        client = page.app.test_client

        def wait(text: str) -> str:
            both_wait.wait()
            assert go_on.wait(30)
            return text

        page.summarise.__globals__["ask_a_model"] = wait
        page.translate.__globals__["ask_slowly"] = wait
        threads = [
            threading.Thread(target=client().post, args=[f"/letters/1/{view}"])
            for view in ("summary", "translation")
        ]
        for thread in threads:
            thread.start()
        both_wait.wait()
        assert [holder.partition(":")[0] for holder in page.holders()] == ["translate"]
        with two_connections.connect():  # the last one
            busy = client().post("/letters/1/translation")
        go_on.set()
        for thread in threads:
            thread.join()
        assert busy.status_code == 503
        (refused,) = caplog.messages
        assert "Held by translate: " in refused
        assert "no endpoint: " in refused
        assert "summar" not in refused
        assert page.holders() == []

    def test_what_is_held_for_long_is_logged_with_the_endpoint_and_the_seconds(
        self,
        page: ModuleType,
        two_connections: Engine,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        clock = [0.0]
        page.watch.__globals__["monotonic"] = lambda: clock[0]

        def ask(text: str) -> str:
            clock[0] += 3
            return text

        page.translate.__globals__["ask_slowly"] = ask
        with caplog.at_level(logging.WARNING):
            page.app.test_client().post("/letters/1/translation")
            self.summarise_when(page, ask, expire=False)
        assert caplog.messages == ["translate held a connection for 3.0 s"]

    def test_an_invalidated_connection_is_not_held_any_more(
        self, page: ModuleType
    ) -> None:
        with page.app.app_context():
            current_session.connection().invalidate()
            assert page.holders() == []


class TestATimeOutForOneView:
    @pytest.fixture
    def page(
        self, recipe: Callable[[str], ModuleType], one_connection: Engine
    ) -> ModuleType:
        module = recipe("def report(")
        module.session.configure(bind=one_connection)
        return module

    @pytest.fixture
    def one_connection(self, postgresql_url: str) -> Iterator[Engine]:
        engine = create_engine(postgresql_url, pool_size=1, max_overflow=0)
        yield engine
        engine.dispose()

    def test_a_slow_statement_of_the_view_is_ended_and_of_others_is_not(
        self, page: ModuleType
    ) -> None:
        client = page.app.test_client()
        assert client.get("/report/0.0").text == "done"
        assert client.get("/report/5.0").status_code == 503
        with page.app.app_context():
            current_session.execute(text("SELECT pg_sleep(0.3)"))
            shown = current_session.scalar(text("SHOW statement_timeout"))
            assert shown == "0"

    def test_inside_isolate_it_lasts_until_the_block_ends(
        self, page: ModuleType
    ) -> None:
        shown = text("SHOW statement_timeout")
        with isolate(page.session):
            with page.app.app_context():
                current_session.execute(text("SET LOCAL statement_timeout = '200ms'"))
                current_session.commit()
            with page.app.app_context():
                assert current_session.scalar(shown) == "200ms"
        with page.app.app_context():
            assert current_session.scalar(shown) == "0"

    def test_set_without_local_limits_whoever_gets_the_connection_next(
        self, page: ModuleType
    ) -> None:
        with page.app.app_context():
            current_session.execute(text("SET statement_timeout = '200ms'"))
            current_session.commit()
        with page.app.app_context():
            assert current_session.scalar(text("SHOW statement_timeout")) == "200ms"


@pytest.mark.parametrize("engine", ["postgresql"], indirect=True)
class TestReadsThatCannotWrite:
    @pytest.fixture
    def page(self, recipe: Callable[[str], ModuleType], engine: Engine) -> ModuleType:
        module = recipe("current_reading = reading.proxy")
        module.session.configure(bind=engine)
        options = module.readonly.get_execution_options()
        module.reading.configure(bind=engine.execution_options(**options))
        return module

    def test_the_database_refuses_every_write(self, page: ModuleType) -> None:
        with page.app.app_context():
            for write in (
                insert(User).values(name="ann"),
                update(User).values(name="ann"),
                text("DELETE FROM users"),
            ):
                with pytest.raises(DBAPIError, match="read-only transaction"):
                    page.current_reading.execute(write)
                page.current_reading.rollback()

    def test_the_connection_can_write_again_when_the_other_session_gets_it(
        self, page: ModuleType, engine: Engine
    ) -> None:
        for _ in range(3):
            with page.app.app_context():
                page.current_reading.execute(text("SELECT 1"))
            with page.app.app_context():
                page.current_session.add(User(name="ann"))
                page.current_session.commit()
        assert engine.pool.status().startswith("Pool size: 5  Connections in pool: 1")

    def test_inside_isolate_both_share_a_connection_and_a_write_is_refused(
        self, page: ModuleType
    ) -> None:
        def write_where_reads_are_allowed() -> None:
            with isolate(page.session, page.reading), page.app.app_context():
                page.current_session.add(User(name="ann"))
                page.current_session.commit()
                assert page.current_reading.scalars(select(User.name)).all() == ["ann"]
                page.current_reading.execute(update(User).values(name="bob"))

        with pytest.raises(IsolationError, match="read only"):
            write_where_reads_are_allowed()

    def test_a_listener_before_the_flush_misses_what_does_not_flush(
        self, page: ModuleType, engine: Engine
    ) -> None:
        class ReadingSession(Session):
            pass

        def refuse(*_: object) -> None:
            raise PermissionError

        event.listen(ReadingSession, "before_flush", refuse)
        with ReadingSession(engine) as session:
            session.execute(insert(User).values(name="ann"))
            session.commit()


class TestHealthCheck:
    @pytest.fixture
    def page(self, recipe: Callable[[str], ModuleType]) -> ModuleType:
        return recipe("def ready(")

    def test_a_worker_without_a_database_is_alive_and_not_ready(
        self, page: ModuleType, caplog: pytest.LogCaptureFixture
    ) -> None:
        page.session.configure(
            bind=create_engine("postgresql+psycopg://nobody@127.0.0.1:1/none")
        )
        client = page.app.test_client()
        assert client.get("/alive").status_code == 200
        assert client.get("/ready").status_code == 503
        assert "The database does not answer" in caplog.text

    def test_a_worker_whose_connections_are_all_in_use_is_not_ready(
        self, page: ModuleType, two_connections: Engine
    ) -> None:
        page.session.configure(bind=two_connections)
        client = page.app.test_client()
        with two_connections.connect(), two_connections.connect():
            assert client.get("/ready").status_code == 503
        assert client.get("/ready").status_code == 200


@pytest.mark.servers
@pytest.mark.parametrize("engine", ["postgresql"], indirect=True)
class TestGracefulShutdown:
    def stop_during_a_request(self, engine: Engine, tmp_path: Path, grace: str) -> str:
        """Tell a server to stop while it serves, and return the answer."""
        url = engine.url.render_as_string(hide_password=False)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            command = [
                *(sys.executable, "-m", "gunicorn", "tests.recipes.shutting_down:app"),
                *("--bind", f"fd://{listener.fileno()}"),
                *("--graceful-timeout", grace, "--threads", "2"),
            ]
            with (tmp_path / "log").open("w") as log:
                server = subprocess.Popen(  # noqa: S603  # our own words
                    command,
                    cwd=ROOT,
                    env={**os.environ, "DATABASE_URL": url},
                    pass_fds=[listener.fileno()],
                    stdout=log,
                    stderr=log,
                )
            try:
                port = listener.getsockname()[1]
                client = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
                client.request("POST", "/users/ann")
                try:
                    return client.getresponse().read().decode()
                except (OSError, http.client.HTTPException) as error:
                    return type(error).__name__
                finally:
                    client.close()
                    server.wait(timeout=30)
            finally:
                server.kill()
                server.wait()

    def left(self, engine: Engine) -> tuple[int, int]:
        """Return the users that are there, and the server's connections."""
        count = text(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = :n"
        )
        with engine.connect().execution_options(
            isolation_level="AUTOCOMMIT"
        ) as connection:
            # The database ends them in its own time.
            for _ in range(100):
                if connection.scalar(count, {"n": "shutting down"}) == 0:
                    break
                time.sleep(0.1)
            connections: int = connection.scalar(count, {"n": "shutting down"})
            users: int = connection.scalar(select(func.count(User.id))) or 0
        return users, connections

    def test_a_request_in_progress_is_answered_and_its_rows_are_there(
        self, engine: Engine, tmp_path: Path
    ) -> None:
        assert self.stop_during_a_request(engine, tmp_path, "20") == "ann"
        assert self.left(engine) == (1, 0)

    def test_one_that_is_not_waited_for_leaves_nothing(
        self, engine: Engine, tmp_path: Path
    ) -> None:
        assert self.stop_during_a_request(engine, tmp_path, "0") != "ann"
        assert self.left(engine) == (0, 0)
