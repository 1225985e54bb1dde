"""The bookshelf, over HTTP. Each test leaves the database as it was."""

from collections.abc import Iterator

import pytest
from flask import Flask
from flask.testing import FlaskClient
from flask_sqlalchemy_session.testing import isolate

from bookshelf import create_app
from bookshelf.database import engine, session
from bookshelf.models import Base


@pytest.fixture(scope="module")
def bookshelf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Flask]:
    file = tmp_path_factory.mktemp("database") / "test.sqlite3"
    app = create_app({"DATABASE_URL": f"sqlite:///{file}"})
    with app.app_context():
        Base.metadata.create_all(engine())
    yield app
    with app.app_context():
        engine().dispose()


@pytest.fixture
def client(bookshelf: Flask) -> Iterator[FlaskClient]:
    with isolate(session):
        yield bookshelf.test_client()


def test_a_book_is_added(client: FlaskClient) -> None:
    assert client.post("/books", data={"title": "Emma"}).status_code == 201
    (book,) = client.get("/books").get_json()
    assert book["title"] == "Emma"


def test_the_shelf_is_empty_at_first(client: FlaskClient) -> None:
    assert client.get("/books").get_json() == []


def test_a_book_is_on_the_shelf_once(client: FlaskClient) -> None:
    client.post("/books", data={"title": "Emma"})
    assert client.post("/books", data={"title": "Emma"}).status_code == 409
    assert len(client.get("/books").get_json()) == 1


def test_a_book_that_is_not_there_is_a_404(client: FlaskClient) -> None:
    assert client.get("/books/1").status_code == 404


def test_a_book_is_finished(client: FlaskClient) -> None:
    book = client.post("/books", data={"title": "Emma"}).get_json()
    assert book["finished"] is None
    path = f"/books/{book['id']}"
    client.put(f"{path}/finished")
    assert client.get(path).get_json()["finished"] is not None
