"""The orders application, over HTTP, on two SQLite files."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sqlalchemy import Engine, create_engine, select
from sqlalchemy.ext.horizontal_shard import ShardedSession
from sqlalchemy.orm import Session
from typing_extensions import assert_type

from tests.support import Held

from . import create_app
from .models import Base, Order
from .sessions import current_session, session

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from flask import Flask
    from flask.testing import FlaskClient


@pytest.fixture
def shards(tmp_path: Path) -> Iterator[dict[str, Engine]]:
    shards = {
        region: create_engine(f"sqlite:///{tmp_path}/{region}.sqlite3")
        for region in ("eu", "us")
    }
    for engine in shards.values():
        Base.metadata.create_all(engine)
    yield shards
    for engine in shards.values():
        engine.dispose()


@pytest.fixture
def app(shards: dict[str, Engine]) -> Flask:
    return create_app(shards)


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    client = app.test_client()
    for region, number, item in [("eu", 1, "tea"), ("eu", 2, "jam"), ("us", 1, "pie")]:
        made = client.put(f"/orders/{region}/{number}", data={"item": item})
        assert made.status_code == 201
    return client


def test_an_order_is_written_to_the_shard_of_its_region(
    client: FlaskClient, shards: dict[str, Engine]
) -> None:
    items = {}
    for region, engine in shards.items():
        with Session(engine) as plain:
            items[region] = set(plain.scalars(select(Order.item)))
    assert items == {"eu": {"tea", "jam"}, "us": {"pie"}}


def test_an_order_is_read_from_the_shard_of_its_region(client: FlaskClient) -> None:
    assert client.get("/orders/eu/1").get_json()["item"] == "tea"
    assert client.get("/orders/us/1").get_json()["item"] == "pie"
    assert client.get("/orders/us/2").status_code == 404
    assert client.get("/orders/mars/1").status_code == 404


def test_an_order_that_is_put_again_is_changed(client: FlaskClient) -> None:
    assert client.put("/orders/eu/1", data={"item": "milk"}).status_code == 201
    assert client.get("/orders/eu/1").get_json()["item"] == "milk"
    assert client.put("/orders/mars/1", data={"item": "dust"}).status_code == 404


def test_a_list_is_of_every_shard_or_of_one(client: FlaskClient) -> None:
    def items(path: str) -> set[str]:
        return {order["item"] for order in client.get(path).get_json()}

    assert items("/orders/") == {"tea", "jam", "pie"}
    assert items("/orders/us/") == {"pie"}
    assert client.get("/orders/mars/").status_code == 404


def test_every_shard_gets_its_connection_back(
    app: Flask, client: FlaskClient, shards: dict[str, Engine]
) -> None:
    held = [Held(engine) for engine in shards.values()]
    with app.app_context():
        current_session.scalars(select(Order)).all()
        assert [one.count for one in held] == [1, 1]
    assert [one.count for one in held] == [0, 0]


def test_the_session_is_typed_as_what_the_factory_makes(app: Flask) -> None:
    with app.app_context():
        assert_type(session(), ShardedSession)
        assert_type(current_session, ShardedSession)
        assert isinstance(current_session, ShardedSession)
