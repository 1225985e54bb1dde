"""The users API: views that know the session, and nothing of how it is made."""

from __future__ import annotations

import unicodedata
from typing import TypedDict

from flask import Blueprint, Response, abort, jsonify, request, url_for
from sqlalchemy import select
from werkzeug.exceptions import (
    BadRequest,
    HTTPException,
    MethodNotAllowed,
    UnsupportedMediaType,
)

from flask_sqlalchemy_session import current_session

from .models import NAME_LENGTH, User

users = Blueprint("users", __name__)


class UserJSON(TypedDict):
    id: int
    name: str


def as_json(user: User) -> UserJSON:
    return {"id": user.id, "name": user.name}


# The column's type holds no larger number.
@users.get("/users/<int(max=2147483647):user_id>")
def show_user(user_id: int) -> UserJSON:
    user = current_session.get(User, user_id)
    if user is None:
        abort(404, f"There is no user {user_id}.")
    return as_json(user)


@users.get("/users")
def list_users() -> list[UserJSON]:
    return [
        as_json(user)
        for user in current_session.scalars(select(User).order_by(User.id))
    ]


@users.post("/users")
def create_user() -> tuple[UserJSON, int, dict[str, str]]:
    user = User(name=read_name())
    with current_session.begin():
        current_session.add(user)
    return as_json(user), 201, {"Location": url_for(".show_user", user_id=user.id)}


def read_name() -> str:
    """Return the name in the request's body, or answer with what is wrong with it."""
    try:
        data = request.get_json()
    except (BadRequest, UnsupportedMediaType, RecursionError):
        abort(400, "The body must be JSON, with 'Content-Type: application/json'.")
    if not isinstance(data, dict):
        abort(400, 'The body must be a JSON object, such as {"name": "Dora"}.')
    if unknown := data.keys() - {"name"}:
        abort(400, f"Unknown keys: {', '.join(map(repr, sorted(unknown)))}.")
    if "name" not in data:
        abort(400, "'name' is missing.")
    name = data["name"]
    if not isinstance(name, str):
        abort(400, "'name' must be a string.")
    if not name.strip():
        abort(400, "'name' must not be blank.")
    if len(name) > NAME_LENGTH:
        abort(400, f"'name' must not be longer than {NAME_LENGTH} characters.")
    # No database stores a lone surrogate, and PostgreSQL no NUL either.
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in name):
        abort(400, "'name' must not contain control characters or lone surrogates.")
    return name


@users.app_errorhandler(HTTPException)
def answer_error(error: HTTPException) -> Response:
    response = jsonify(error=error.description)
    response.status_code = error.code or 500
    if isinstance(error, MethodNotAllowed):
        response.allow.update(error.valid_methods or ())
    return response
