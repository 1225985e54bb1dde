"""What the application and the test of it both know."""

from __future__ import annotations

from typing import Final

from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

#: What the application's log says, for the test to count.
STRANGER: Final = "a session came with the marks of another"
HUNG_UP: Final = "the client hung up in mid-stream"
PLANNED: Final = "one hook in a hundred raises"


class Base(DeclarativeBase):
    pass


class Entry(Base):
    __tablename__ = "ledger"

    key: Mapped[str] = mapped_column(primary_key=True)
    author: Mapped[str]
