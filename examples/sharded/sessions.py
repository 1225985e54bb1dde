"""The session: SQLAlchemy's `ShardedSession`, made for the current application."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from flask import current_app
from sqlalchemy.ext.horizontal_shard import ShardedSession

from flask_sqlalchemy_session import FlaskScopedSession

from .models import Order

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy.orm import Mapper, ORMExecuteState

T = TypeVar("T")


def make_session() -> ShardedSession:
    return ShardedSession(
        shards=current_app.extensions["shards"],
        shard_chooser=shard_of_object,
        identity_chooser=shards_of_key,
        execute_chooser=shards_of_statement,
    )


def shard_of_object(
    mapper: Mapper[T] | None, instance: object, clause: object = None
) -> str:
    """Choose where a flush writes an object."""
    assert isinstance(instance, Order)
    return instance.region


def shards_of_key(
    mapper: Mapper[T], primary_key: tuple[str, int], **options: object
) -> Iterable[str]:
    """Choose where `get` looks for an object."""
    region, _ = primary_key
    return [region] if region in current_app.extensions["shards"] else []


def shards_of_statement(state: ORMExecuteState) -> Iterable[str]:
    """Choose where a query runs: everywhere, unless it has a `set_shard_id` option."""
    shards: dict[str, object] = current_app.extensions["shards"]
    return list(shards)


session = FlaskScopedSession(make_session)

#: The current session, which checkers know to be a `ShardedSession`.
current_session = session.proxy
