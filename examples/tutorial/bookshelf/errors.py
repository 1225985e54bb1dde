"""What the application answers when a view raises."""

from flask import Flask
from sqlalchemy.exc import IntegrityError, NoResultFound


def init_app(app: Flask) -> None:
    app.register_error_handler(NoResultFound, answer_not_found)
    app.register_error_handler(IntegrityError, answer_conflict)


def answer_not_found(error: NoResultFound) -> tuple[dict[str, str], int]:
    return {"error": "There is no such book."}, 404


def answer_conflict(error: IntegrityError) -> tuple[dict[str, str], int]:
    return {"error": "That book is on the shelf already."}, 409
