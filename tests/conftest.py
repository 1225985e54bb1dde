"""Databases to run the tests on, and the checks that hold for every test."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

import pytest
from flask import Flask
from sqlalchemy import (
    AsyncAdaptedQueuePool,
    Engine,
    StaticPool,
    create_engine,
    text,
)
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.orm import Session, sessionmaker

from flask_sqlalchemy_session import FlaskScopedSession

from .async_support import async_url, run
from .support import Base, Held, User, drop_tables

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

DRIVERS = ["asyncpg", "psycopg", "aiosqlite"]
DATABASES = ["sqlite-memory", "sqlite-file", "postgresql"]


@pytest.fixture
def memory() -> Iterator[Engine]:
    """An engine for what does not depend on the database."""
    engine = memory_engine()
    Base.metadata.create_all(engine)
    yield engine
    engine.dispose()


def memory_engine() -> Engine:
    return create_engine(
        "sqlite://",
        poolclass=StaticPool,
        connect_args={"check_same_thread": False},
    )


@pytest.fixture(params=DATABASES)
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    """An engine with an empty `users` table, one run for each database."""
    match request.param:
        case "sqlite-memory":
            engine = memory_engine()
        case "sqlite-file":
            engine = create_engine(f"sqlite:///{tmp_path}/test.sqlite3")
        case _:
            engine = create_engine(request.getfixturevalue("postgresql_url"))
    Base.metadata.create_all(engine)
    yield engine
    if request.param == "postgresql":
        with engine.begin() as connection:
            drop_tables(connection)
    engine.dispose()


@pytest.fixture
def held(engine: Engine) -> Held:
    """The count of the engine's connections in use."""
    return Held(engine)


@pytest.fixture
def app() -> Flask:
    return Flask("shop")


@pytest.fixture
def session(app: Flask, engine: Engine) -> FlaskScopedSession[Session]:
    """The default scoped session of `app`, on `engine`."""
    return FlaskScopedSession(sessionmaker(engine), app)


@pytest.fixture
def ann(engine: Engine) -> User:
    """A user who is in the database."""
    with Session(engine, expire_on_commit=False) as session:
        user = User(name="ann")
        session.add(user)
        session.commit()
        session.expunge_all()
    return user


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Turn the cyclic collector off, so that it can't release what we did not."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.fixture(params=DRIVERS)
def async_engine(
    request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[AsyncEngine]:
    """An engine with a pool and an empty `users` table."""
    url = async_url(request.param, request, tmp_path)
    # The default, for SQLite's files since SQLAlchemy 2.0.38.
    engine = create_async_engine(url, poolclass=AsyncAdaptedQueuePool)

    async def create() -> None:
        async with engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)

    async def drop() -> None:
        async with engine.begin() as connection:
            await connection.run_sync(drop_tables)
        await engine.dispose()

    run(create)
    yield engine
    run(drop)


@pytest.fixture
def idle_in_transaction(async_engine: AsyncEngine) -> Callable[[], int]:
    """Asks the server how many of its backends are left in a transaction."""

    async def count() -> int:
        if async_engine.dialect.name == "sqlite":
            return 0
        query = text(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
            "AND state LIKE 'idle in transaction%'"
        )
        async with async_engine.connect() as connection:
            left: int = (await connection.execute(query)).scalar_one()
        return left

    return lambda: run(count)
