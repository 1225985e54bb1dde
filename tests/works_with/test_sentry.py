"""Sentry: an error's report keeps no connection of the request that failed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import select

from flask_sqlalchemy_session import current_session
from tests.support import OopsError, User

pytest.importorskip("sentry_sdk")

import sentry_sdk
from sentry_sdk.transport import Transport

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flask import Flask
    from flask.testing import FlaskClient
    from sentry_sdk.envelope import Envelope
    from sqlalchemy.orm import Session

    from flask_sqlalchemy_session import FlaskScopedSession
    from tests.support import Held


class Kept(Transport):
    """Keeps what would be sent."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[dict[str, Any]] = []

    def capture_envelope(self, envelope: Envelope) -> None:
        for item in envelope.items:
            if item.payload.json is not None:
                self.events.append(item.payload.json)


@pytest.fixture
def sent() -> Iterator[list[dict[str, Any]]]:
    transport = Kept()
    # It finds Flask and SQLAlchemy by itself.
    sentry_sdk.init(
        "https://key@sentry.example/1", transport=transport, traces_sample_rate=1.0
    )
    yield transport.events
    sentry_sdk.get_client().close()
    sentry_sdk.init()


@pytest.fixture
def client(app: Flask, session: FlaskScopedSession[Session], ann: User) -> FlaskClient:
    @app.get("/")
    def list_() -> list[str]:
        return list(current_session.scalars(select(User.name)))

    @app.get("/fail")
    def fail() -> str:
        session_ = session()
        user = session_.get_one(User, ann.id)
        user.name = "bob"
        session_.flush()
        raise OopsError

    return app.test_client()


def test_a_request_and_its_statements_are_told(
    sent: list[dict[str, Any]], client: FlaskClient, held: Held
) -> None:
    assert client.get("/").get_json() == ["ann"]
    assert held.count == 0
    (event,) = sent
    assert event["transaction"] == "list_"
    assert [span["op"] for span in event["spans"]] == ["db"]


def test_the_report_of_an_error_keeps_nothing_open(
    sent: list[dict[str, Any]], client: FlaskClient, held: Held
) -> None:
    assert client.get("/fail").status_code == 500
    assert held.count == 0
    error = next(event for event in sent if "exception" in event)
    (exception,) = error["exception"]["values"]
    assert exception["type"] == "OopsError"
    *_, frame = exception["stacktrace"]["frames"]
    assert frame["function"] == "fail"
    assert {"session_", "user"} <= frame["vars"].keys()
    assert client.get("/").get_json() == ["ann"]
