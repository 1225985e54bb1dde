"""The users API: views that know the session, and nothing of how it is made."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, TypedDict

from flask import Blueprint, Response, abort, current_app, request, stream_with_context
from sqlalchemy import select

from flask_sqlalchemy_session.asyncio import current_async_session

from .models import NAME_LENGTH, User

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator

users = Blueprint("users", __name__)


class UserJSON(TypedDict):
    id: int
    name: str


def as_json(user: User) -> UserJSON:
    return {"id": user.id, "name": user.name}


# The column's type holds no larger number.
@users.get("/users/<int(max=2147483647):user_id>")
async def show_user(user_id: int) -> UserJSON:
    user = await current_async_session.get(User, user_id)
    if user is None:
        abort(404, f"There is no user {user_id}.")
    return as_json(user)


@users.post("/users")
async def create_user() -> tuple[UserJSON, int]:
    name = request.form.get("name", "").strip()
    if not name or "\0" in name or len(name) > NAME_LENGTH:
        abort(400, f"'name' must be 1 to {NAME_LENGTH} characters, none of them NUL.")
    user = User(name=name)
    async with current_async_session.begin():
        current_async_session.add(user)
    return as_json(user), 201


@users.get("/users")
def stream_users() -> Response:
    """Answer with a user a line, read from the database as the client reads them."""
    # No async view: before Flask 3.1.2 `stream_with_context` has to be called in the
    # thread that iterates over the answer, and async views run in another.
    return Response(
        stream_with_context(iterate(user_lines())), mimetype="application/x-ndjson"
    )


async def user_lines() -> AsyncGenerator[str, None]:
    found = await current_async_session.stream_scalars(select(User).order_by(User.id))
    try:
        async for user in found:
            yield json.dumps(as_json(user)) + "\n"
    finally:
        await found.close()


def iterate(source: AsyncGenerator[str, None]) -> Iterator[str]:
    """Iterate over an async generator, for a server that knows none."""

    async def step() -> str | None:
        return await anext(source, None)

    async def close() -> None:
        await source.aclose()

    try:
        while (line := current_app.ensure_sync(step)()) is not None:
            yield line
    finally:
        current_app.ensure_sync(close)()
