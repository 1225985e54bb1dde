"""Flask-SocketIO: each event has a context, and so a session, of its own."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session
from werkzeug.serving import make_server

from flask_sqlalchemy_session import current_session
from tests.support import OopsError, User

pytest.importorskip("flask_socketio")

from flask_socketio import SocketIO, SocketIOTestClient, emit
from socketio import SimpleClient

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flask import Flask
    from sqlalchemy import Engine

    from flask_sqlalchemy_session import FlaskScopedSession
    from tests.support import Held


def add_events(socketio: SocketIO) -> None:
    @socketio.on("add")
    def add(name: str) -> None:
        with current_session.begin():
            current_session.add(User(name=name))
        emit("names", list(current_session.scalars(select(User.name))))


class TestEvents:
    @pytest.fixture
    def socketio(
        self, app: Flask, session: FlaskScopedSession[Session], held: Held
    ) -> Iterator[SocketIO]:
        self.used: list[Session] = []
        socketio = SocketIO(app, async_mode="threading")
        add_events(socketio)

        @socketio.on("fail")
        def fail(name: str) -> None:
            self.used.append(session())
            current_session.add(User(name=name))
            current_session.flush()
            raise OopsError

        yield socketio
        assert held.count == 0

    @pytest.fixture
    def client(self, app: Flask, socketio: SocketIO) -> Iterator[SocketIOTestClient]:
        client = socketio.test_client(app)
        yield client
        client.disconnect()

    def test_an_event_writes_and_answers(self, client: SocketIOTestClient) -> None:
        client.emit("add", "ann")
        client.emit("add", "bob")
        names = [answer["args"] for answer in client.get_received()]
        assert names == [[["ann"]], [["ann", "bob"]]]

    def test_an_event_that_fails_leaves_nothing_to_the_next(
        self, client: SocketIOTestClient, held: Held
    ) -> None:
        for _ in range(2):
            with pytest.raises(OopsError):
                client.emit("fail", "bob")
            assert held.count == 0
        first, second = self.used
        assert first is not second
        client.emit("add", "ann")
        assert client.get_received()[-1]["args"] == [["ann"]]

    def test_a_background_task_opens_a_context(
        self, app: Flask, socketio: SocketIO, ann: User, held: Held
    ) -> None:
        found: list[str] = []

        def task() -> None:
            with app.app_context():
                found.extend(current_session.scalars(select(User.name)))

        socketio.start_background_task(task).join()
        assert found == ["ann"]


class TestAServer:
    @pytest.fixture
    def url(
        self, app: Flask, session: FlaskScopedSession[Session], held: Held
    ) -> Iterator[str]:
        """The address of a server, which answers each event in a thread."""
        socketio = SocketIO(app, async_mode="threading")

        @socketio.on("add")
        def add(name: str) -> str:
            with current_session.begin():
                current_session.add(User(name=name))
            return name

        @socketio.on("fail")
        def fail(name: str) -> str:
            current_session.add(User(name=name))
            current_session.flush()
            raise OopsError

        @socketio.on_error_default
        def answer(error: BaseException) -> str:
            return type(error).__name__

        server = make_server("127.0.0.1", 0, app, threaded=True)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()
        server.server_close()
        assert held.count == 0

    def test_events_of_two_browsers_write_and_fail_in_turn(
        self, url: str, engine: Engine, held: Held
    ) -> None:
        browsers = [SimpleClient(), SimpleClient()]
        for browser in browsers:
            browser.connect(url, wait_timeout=60)
        for name in ("ann", "bob"):
            for browser in browsers:
                assert browser.call("fail", name) == "OopsError"
                assert browser.call("add", name) == name
        for browser in browsers:
            browser.disconnect()
        assert held.count == 0
        with Session(engine) as session:
            names = list(session.scalars(select(User.name)))
        assert names == ["ann", "ann", "bob", "bob"]
