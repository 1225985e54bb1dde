"""The page for the on-call quotes the real messages, and its queries tell the truth."""

from __future__ import annotations

import gc
import re
import time
import warnings
from contextvars import copy_context
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING

import pytest
from flask import Flask
from markdown_it import MarkdownIt
from sqlalchemy import (
    Engine,
    ForeignKey,
    QueuePool,
    create_engine,
    event,
    text,
)
from sqlalchemy.exc import (
    IllegalStateChangeError,
    IntegrityError,
    PendingRollbackError,
    TimeoutError as PoolTimeoutError,
)
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    mapped_column,
    relationship,
    sessionmaker,
)
from sqlalchemy.orm.exc import DetachedInstanceError

from flask_sqlalchemy_session import FlaskScopedSession

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = Path(__file__).parents[2] / "docs" / "operations.md"


class Base(DeclarativeBase):
    pass


class User(Base):
    __tablename__ = "customers"

    id: Mapped[int] = mapped_column(primary_key=True)
    orders: Mapped[list[Order]] = relationship()


class Order(Base):
    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("customers.id"))


@pytest.fixture
def sqlite(tmp_path: Path) -> Iterator[Engine]:
    engine = create_engine(
        f"sqlite:///{tmp_path}/shop.sqlite3",
        poolclass=QueuePool,
        pool_size=1,
        max_overflow=0,
        pool_timeout=0.1,
    )
    Base.metadata.create_all(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def postgresql(postgresql_url: str) -> Iterator[Engine]:
    engine = create_engine(postgresql_url, pool_reset_on_return=None)
    yield engine
    engine.dispose()


def blocks(kind: str) -> list[str]:
    tokens = MarkdownIt().parse(PAGE.read_text(encoding="utf-8"))
    return [token.content for token in tokens if token.info == kind]


def quoted(error: BaseException) -> bool:
    """Tell whether the page quotes an error, whose numbers may differ."""
    words = f"{type(error).__module__}.{type(error).__name__}: {error}"
    pattern = re.compile(r"0x\w+|\d+(\.\d+)?")
    said = pattern.sub("…", " ".join(words.split()))
    return any(
        said.startswith(pattern.sub("…", " ".join(block.split()).replace("0x…", "…")))
        for block in blocks("text")
    )


def test_an_exhausted_pool_is_quoted(sqlite: Engine) -> None:
    with (
        sqlite.connect(),
        pytest.raises(PoolTimeoutError) as raised,
    ):
        sqlite.connect()
    assert quoted(raised.value)


def test_a_detached_instance_is_quoted(sqlite: Engine) -> None:
    with Session(sqlite) as session:
        session.add(User())
        session.commit()
        user = session.get_one(User, 1)
    with pytest.raises(DetachedInstanceError) as raised:
        _ = user.orders
    assert quoted(raised.value)


def test_a_failed_transaction_is_quoted(sqlite: Engine) -> None:
    with Session(sqlite) as session:
        session.add_all([User(id=1), Order()])
        with pytest.raises(IntegrityError):
            session.flush()
        with pytest.raises(PendingRollbackError) as raised:
            session.get(User, 1)
    assert quoted(raised.value)


def test_two_threads_in_one_session_are_quoted(sqlite: Engine) -> None:
    session = Session(sqlite)
    seen: list[IllegalStateChangeError] = []

    def close() -> None:
        with pytest.raises(IllegalStateChangeError) as raised:
            session.close()
        seen.append(raised.value)

    def close_in_another_thread(*_: object) -> None:
        thread = Thread(target=close)
        thread.start()
        thread.join()

    event.listen(sqlite, "checkout", close_in_another_thread)
    session.connection()
    session.close()
    assert quoted(seen[0])


@pytest.mark.leaks
def test_the_warning_of_the_safety_net_is_quoted(sqlite: Engine) -> None:
    app = Flask("shop")
    session = FlaskScopedSession(sessionmaker(sqlite), app)

    def forget_to_pop() -> None:
        app.app_context().push()
        session.connection()

    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        copy_context().run(forget_to_pop)
        gc.collect()
    (warning,) = seen
    said = f"{warning.category.__name__}: {warning.message}"
    (block,) = (block for block in blocks("text") if "closed by" in block)
    assert said.startswith(" ".join(block.split()).removesuffix(" …"))


def test_the_queries_find_who_is_idle_and_who_waits(postgresql: Engine) -> None:
    connections, idle, waiting, terminate = blocks("sql")
    lock = text("SELECT pg_advisory_xact_lock(17)")
    with postgresql.connect() as holder, postgresql.connect() as waiter:
        holder.execute(text("SET application_name = 'shop web'"))
        holder.execute(lock)
        thread = Thread(target=waiter.execute, args=(lock,))
        thread.start()
        with postgresql.connect().execution_options(
            isolation_level="AUTOCOMMIT"
        ) as asking:
            while not (waits := asking.execute(text(waiting)).mappings().all()):
                time.sleep(0.05)
            found = asking.execute(text(connections)).mappings().all()
            (open_,) = asking.execute(text(idle)).mappings().all()
            ended = asking.execute(text(terminate)).all()
        holder.rollback()
        thread.join()
        waiter.rollback()
    assert open_["application_name"] == "shop web"
    assert open_["last_query"] == str(lock)
    assert [dict(row) for row in waits] == [
        {
            "waiting": waits[0]["waiting"],
            "for_this": str(lock),
            "holding": open_["pid"],
            "state": "idle in transaction",
            "last_query": str(lock),
        }
    ]
    assert {row["pid"] for row in found} >= {open_["pid"], waits[0]["waiting"]}
    assert not ended  # none is that old
