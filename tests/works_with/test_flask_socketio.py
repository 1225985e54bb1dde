"""Flask-SocketIO: each event has a context, and so a session, of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sqlalchemy import select

from flask_sqlalchemy_session import current_session
from tests.support import OopsError, User

pytest.importorskip("flask_socketio")

from flask_socketio import SocketIO, SocketIOTestClient, emit

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flask import Flask
    from sqlalchemy.orm import Session

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
