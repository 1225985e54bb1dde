"""The deploying page's settings for PgBouncer in transaction mode, on the real one."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from flask import Flask
from sqlalchemy import Engine, NullPool, create_engine, text
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker
from sqlalchemy.orm import sessionmaker

from flask_sqlalchemy_session import FlaskScopedSession
from flask_sqlalchemy_session.asyncio import FlaskAsyncScopedSession, use_one_event_loop
from tests.async_support import run

from .pgbouncer import POOL_SIZE, pgbouncer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import URL

pytestmark = pytest.mark.servers

REQUESTS = 200
CLIENTS = 8
PAGE = Path(__file__).parents[2] / "docs" / "deploying.md"

INSERT = text("INSERT INTO bounced VALUES (:number)")
COUNT = text("SELECT count(*) FROM bounced WHERE number = :number")


@pytest.fixture
def bouncer(
    tmp_path_factory: pytest.TempPathFactory, postgresql_url: str
) -> Iterator[URL]:
    engine = create_engine(postgresql_url, poolclass=NullPool)
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE IF EXISTS bounced"))
        connection.execute(text("CREATE TABLE bounced (number integer)"))
    directory = tmp_path_factory.mktemp("pgbouncer")
    for each in (directory, *directory.parents[:2]):
        each.chmod(0o755)  # as root it runs as another user
    with pgbouncer(directory, postgresql_url) as url:
        yield url
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE bounced"))


def engine_of_the_page(driver: str, url: URL) -> object:
    """Run the page's block for a driver, with another address."""
    section = PAGE.read_text().partition("## PgBouncer")[2].partition("\n## ")[0]
    blocks = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    (block,) = (block for block in blocks if f'"postgresql+{driver}://' in block)
    address = url.set(drivername=f"postgresql+{driver}")
    mine = re.sub(
        r'"postgresql\+\w+://[^"]*"',
        repr(address.render_as_string(hide_password=False)),
        block,
    )
    names: dict[str, object] = {}
    exec(mine, names)  # noqa: S102  # our own page
    return names.get("async_engine") or names["engine"]


def ask_for_all(app: Flask) -> None:
    """Let clients ask at the same time, a third of whose requests fail."""

    def ask(number: int) -> tuple[int, str]:
        answer = app.test_client().get(f"/{number}")
        return answer.status_code, answer.text

    with ThreadPoolExecutor(CLIENTS) as clients:
        answers = list(clients.map(ask, range(REQUESTS)))
    for number, answer in enumerate(answers):
        assert answer == (200, "1") if number % 3 else answer[0] == 500


def assert_nothing_was_lost(postgresql_url: str) -> None:
    engine = create_engine(postgresql_url, poolclass=NullPool)
    with engine.connect() as connection:
        numbers = text("SELECT number FROM bounced ORDER BY 1")
        assert list(connection.scalars(numbers)) == [
            number for number in range(REQUESTS) if number % 3
        ]
        # Those of PgBouncer's own pool, and none in a transaction.
        backends = text(
            "SELECT count(*), count(xact_start) FROM pg_stat_activity "
            "WHERE pid <> pg_backend_pid() AND query LIKE '%bounced%'"
        )
        count, busy = connection.execute(backends).one()
    assert count <= POOL_SIZE
    assert busy == 0


def test_nothing_is_lost_with_sync_sessions(bouncer: URL, postgresql_url: str) -> None:
    engine = engine_of_the_page("psycopg", bouncer)
    assert isinstance(engine, Engine)
    app = Flask("shop")
    session = FlaskScopedSession(sessionmaker(engine), app)

    @app.get("/<int:number>")
    def view(number: int) -> str:
        session.execute(INSERT, {"number": number})
        if not number % 3:
            raise LookupError
        session.commit()
        return str(session.scalar(COUNT, {"number": number}))

    ask_for_all(app)
    assert_nothing_was_lost(postgresql_url)


@pytest.mark.parametrize("driver", ["asyncpg"])
def test_nothing_is_lost_with_async_sessions(
    bouncer: URL, postgresql_url: str, driver: str
) -> None:
    engine = engine_of_the_page(driver, bouncer)
    assert isinstance(engine, AsyncEngine)
    app = Flask("shop")
    use_one_event_loop(app)
    session = FlaskAsyncScopedSession(async_sessionmaker(engine), app)

    @app.get("/<int:number>")
    async def view(number: int) -> str:
        await session.execute(INSERT, {"number": number})
        if not number % 3:
            raise LookupError
        await session.commit()
        return str(await session.scalar(COUNT, {"number": number}))

    ask_for_all(app)
    run(engine.dispose)
    assert_nothing_was_lost(postgresql_url)
