"""What the application answers."""

from datetime import datetime, timezone

from flask import Blueprint, request
from flask_sqlalchemy_session import current_session
from sqlalchemy import select

from .models import Book

books = Blueprint("books", __name__)


def as_json(book: Book) -> dict[str, object]:
    finished = book.finished.isoformat() if book.finished else None
    return {"id": book.id, "title": book.title, "finished": finished}


@books.get("/books")
def list_books() -> list[dict[str, object]]:
    found = current_session.scalars(select(Book).order_by(Book.id))
    return [as_json(book) for book in found]


@books.get("/books/<int:book_id>")
def show_book(book_id: int) -> dict[str, object]:
    return as_json(current_session.get_one(Book, book_id))


@books.post("/books")
def add_book() -> tuple[dict[str, object], int]:
    book = Book(title=request.form["title"])
    with current_session.begin():
        current_session.add(book)
    return as_json(book), 201


@books.put("/books/<int:book_id>/finished")
def finish_book(book_id: int) -> dict[str, object]:
    with current_session.begin():
        book = current_session.get_one(Book, book_id)
        book.finished = datetime.now(timezone.utc).date()
    return as_json(book)
