"""Whether a driver's connection commits each statement by itself."""

from __future__ import annotations

from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Dialect
    from sqlalchemy.engine.interfaces import DBAPIConnection


class Mode(Enum):
    """When a statement outside of `BEGIN` and `COMMIT` is committed."""

    TRANSACTION = "when the driver is told to commit"
    AUTOCOMMIT = "at once"
    SQLITE = "at once, but for those that change rows"
    """What `sqlite3` does unless it is told otherwise."""


def find_mode(driver: DBAPIConnection, dialect: Dialect) -> Mode:
    if dialect.name != "sqlite":
        return Mode.AUTOCOMMIT if is_in_autocommit(driver) else Mode.TRANSACTION
    # Python 3.12's attribute; the older one counts where it is not set.
    autocommit = sqlite_autocommit(driver, dialect)
    if autocommit is False:
        return Mode.TRANSACTION
    if autocommit is True or driver.isolation_level is None:
        return Mode.AUTOCOMMIT
    return Mode.SQLITE


def sqlite_autocommit(driver: DBAPIConnection, dialect: Dialect) -> object:
    return getattr(dialect.get_driver_connection(driver), "autocommit", None)


def is_in_autocommit(driver: Any) -> bool:
    # A method sets it on some drivers for MySQL, and another tells.
    get = getattr(driver, "get_autocommit", None)
    value = getattr(driver, "autocommit", False) if get is None else get()
    return value is True or value == 1


def leave_autocommit(driver: Any) -> Callable[[], object]:
    """Let a driver begin transactions.

    :return: what puts it back in autocommit.
    """
    if callable(driver.autocommit):
        driver.autocommit(False)
        return partial(driver.autocommit, True)
    name, value = "autocommit", True
    driver.autocommit = False
    if driver.autocommit:  # asyncpg's attribute falls back to what it was made with
        name, value = "isolation_level", driver.isolation_level
        driver.isolation_level = None
    return partial(setattr, driver, name, value)
