"""The users table: plain SQLAlchemy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import String
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

if TYPE_CHECKING:
    from sqlalchemy import URL

NAME_LENGTH = 80


class Base(DeclarativeBase):
    pass


class User(Base):
    __tablename__ = "async_users"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(NAME_LENGTH))


async def create_tables(url: str | URL) -> None:
    """Create the table, unless it is there."""
    # An engine for this alone: a server may fork now, and its workers must not inherit
    # connections.
    engine = create_async_engine(url)
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    await engine.dispose()
