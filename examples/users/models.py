"""The users table: plain SQLAlchemy."""

from __future__ import annotations

from sqlalchemy import Engine, String, insert, inspect
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

NAME_LENGTH = 80
FIRST_USERS = ["Ann", "Bob", "Cleo"]


class Base(DeclarativeBase):
    pass


class User(Base):
    __tablename__ = "users"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(NAME_LENGTH))


def create_tables(engine: Engine) -> None:
    """Create the table with its first users, unless it is there.

    Of several processes that start at once, one does it and the others find it done.
    """
    if not inspect(engine).has_table(User.__tablename__):
        try:
            with engine.begin() as connection:
                if engine.dialect.name == "sqlite":
                    # Its driver would not begin a transaction before the first row.
                    connection.exec_driver_sql("BEGIN IMMEDIATE")
                Base.metadata.create_all(connection, checkfirst=False)
                connection.execute(
                    insert(User), [{"name": name} for name in FIRST_USERS]
                )
        except DBAPIError:
            if not inspect(engine).has_table(User.__tablename__):
                raise
    # A server may fork now, and its workers must not inherit connections.
    engine.dispose()
