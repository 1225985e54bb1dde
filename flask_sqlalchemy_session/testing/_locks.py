"""Turns on one connection, for the tasks of an event loop."""

from __future__ import annotations

import asyncio
from typing import Any

from sqlalchemy.util import await_only


class TaskLock:
    """Lets the tasks of an event loop take turns, as an `RLock` does threads."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._owner: asyncio.Task[Any] | None = None
        self._depth = 0

    def __enter__(self) -> None:
        task = asyncio.current_task()
        if self._owner is not task:
            await_only(self._lock.acquire())
            self._owner = task
        self._depth += 1

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        if not self._depth:
            self._owner = None
            self._lock.release()
