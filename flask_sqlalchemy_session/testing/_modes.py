"""Whether a driver's connection commits each statement by itself."""

from __future__ import annotations

from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


class Mode(Enum):
    """When a statement outside of `BEGIN` and `COMMIT` is committed."""

    # The values are those of Python 3.12's `sqlite3.Connection.autocommit`, of which
    # other drivers know the first two.
    TRANSACTION = False
    """When the driver is told to commit."""
    AUTOCOMMIT = True
    """At once."""
    SQLITE = -1
    """At once, but for those that change rows. `sqlite3` does so by default."""


def find_mode(driver: Any) -> Mode:
    """Return the mode of a connection that is not of SQLite."""
    # A method sets it on some drivers for MySQL, and another tells.
    get = getattr(driver, "get_autocommit", None)
    value = getattr(driver, "autocommit", False) if get is None else get()
    return Mode(value == 1)


def find_sqlite_mode(driver: Any, autocommit: object) -> Mode:
    """Return the mode of a connection of SQLite.

    :param autocommit: Python 3.12's attribute; the older one counts where it is not
        set.
    """
    if autocommit is False:
        return Mode.TRANSACTION
    if autocommit is True or driver.isolation_level is None:
        return Mode.AUTOCOMMIT
    return Mode.SQLITE


def leave_autocommit(driver: Any) -> Callable[[], object]:
    """Let a driver begin transactions.

    :return: what puts it back in autocommit.
    """
    if callable(driver.autocommit):
        driver.autocommit(False)
        return partial(driver.autocommit, True)
    driver.autocommit = False
    if driver.autocommit:  # asyncpg's falls back to what it was made with
        level, driver.isolation_level = driver.isolation_level, None
        return partial(setattr, driver, "isolation_level", level)
    return partial(setattr, driver, "autocommit", True)
