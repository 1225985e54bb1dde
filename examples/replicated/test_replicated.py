"""The notes application, over HTTP, on a SQLite file and a copy of it."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from flask import Flask
from sqlalchemy import Engine, create_engine, delete, insert, select, text, update
from typing_extensions import assert_type

from flask_sqlalchemy_session import FlaskScopedSession
from tests.support import Held

from . import create_app
from .models import Base, Note
from .sessions import ReplicatedSession

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from flask.testing import FlaskClient


def make_engine(file: Path) -> Iterator[Engine]:
    engine = create_engine(f"sqlite:///{file}")
    Base.metadata.create_all(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def primary(tmp_path: Path) -> Iterator[Engine]:
    yield from make_engine(tmp_path / "primary.sqlite3")


@pytest.fixture
def replica(tmp_path: Path) -> Iterator[Engine]:
    yield from make_engine(tmp_path / "replica.sqlite3")


@pytest.fixture
def client(primary: Engine, replica: Engine) -> FlaskClient:
    return create_app(primary, replica).test_client()


def replicate(primary: Engine, replica: Engine) -> None:
    """Let the replica catch up."""
    with (
        primary.connect() as source,
        replica.begin() as target,
        closing(source.execute(select(Note.id, Note.text))) as rows,
    ):
        target.execute(delete(Note))
        for row in rows:
            target.execute(insert(Note), {"id": row.id, "text": row.text})


def test_a_write_goes_to_the_primary_and_a_read_to_the_replica(
    client: FlaskClient, primary: Engine, replica: Engine
) -> None:
    client.post("/notes", data={"text": "milk"})
    assert client.get("/notes").get_json() == []
    replicate(primary, replica)
    assert client.get("/notes").get_json() == ["milk"]


def test_a_request_reads_what_it_wrote(client: FlaskClient) -> None:
    assert client.post("/notes", data={"text": "milk"}).get_json() == ["milk"]
    assert client.post("/notes", data={"text": "eggs"}).get_json() == ["milk", "eggs"]


def test_the_next_request_reads_from_the_replica_again(client: FlaskClient) -> None:
    assert client.post("/notes", data={"text": "milk"}).get_json() == ["milk"]
    assert client.get("/notes").get_json() == []


class TestSession:
    """The session itself, in a context of an application of the test's."""

    @pytest.fixture
    def session(
        self, primary: Engine, replica: Engine
    ) -> Iterator[FlaskScopedSession[ReplicatedSession]]:
        app = Flask("notes")

        def make_session() -> ReplicatedSession:
            return ReplicatedSession(primary, replica)

        session = FlaskScopedSession(make_session, app)
        with app.app_context():
            yield session

    def test_it_is_typed_as_what_the_factory_makes(
        self, session: FlaskScopedSession[ReplicatedSession]
    ) -> None:
        assert_type(session(), ReplicatedSession)
        assert_type(session.proxy, ReplicatedSession)
        assert isinstance(session.proxy, ReplicatedSession)

    def test_what_is_no_plain_read_goes_to_the_primary(
        self,
        session: FlaskScopedSession[ReplicatedSession],
        primary: Engine,
        replica: Engine,
    ) -> None:
        assert session.get_bind(clause=select(Note)) is replica
        assert session.get_bind(clause=text("SELECT 1")) is primary
        session.remove()
        session.execute(update(Note).values(text="eggs"))
        assert session.connection().engine is primary

    def test_a_read_can_be_sent_to_the_primary(
        self,
        session: FlaskScopedSession[ReplicatedSession],
        primary: Engine,
        replica: Engine,
    ) -> None:
        session.proxy.use_primary()
        assert session.get_bind(clause=select(Note)) is primary

    def test_a_database_that_is_asked_for_by_name_is_used(
        self,
        session: FlaskScopedSession[ReplicatedSession],
        primary: Engine,
        replica: Engine,
    ) -> None:
        session.proxy.use_primary()
        asked_for = session.connection(bind_arguments={"bind": replica})
        assert asked_for.engine is replica

    def test_both_databases_get_their_connections_back(
        self,
        session: FlaskScopedSession[ReplicatedSession],
        primary: Engine,
        replica: Engine,
    ) -> None:
        held = [Held(primary), Held(replica)]
        session.scalars(select(Note)).all()
        session.add(Note(text="milk"))
        session.flush()
        assert [one.count for one in held] == [1, 1]
        session.remove()
        assert [one.count for one in held] == [0, 0]
