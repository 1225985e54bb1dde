"""Transactions that share one real transaction, as savepoints of it.

A savepoint can only be rolled back together with all that came after it, while
transactions of different connections may end in any order. So these hold:

- A transaction that has only read keeps no savepoint below another's work. It gets new
  ones before its next statement.
- What one writes after the savepoint of another, which has not ended, can't outlive a
  rollback of that other one. That rollback is refused.
"""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING

from ._errors import IsolationError

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._stand_in import StandIn

_numbers = count(1)


def new_name() -> str:
    return f"isolate_{next(_numbers)}"


class Savepoints:
    """Keeps who has written what after whose savepoint."""

    def __init__(self, execute: Callable[[str], object]) -> None:
        self.refused: IsolationError | None = None
        #: Whether the block ends, where all is undone and nothing has to be refused.
        self.closing = False
        self._execute = execute
        # What can still be undone, the oldest first: who set a savepoint, with its name
        # in the database, or who wrote, without one.
        self._log: list[tuple[StandIn, str]] = []

    def enter(self, one: StandIn) -> None:
        """Set the savepoints that a transaction needs before its next statement."""
        self._release_reader(one)
        if not one.savepoints:
            one.savepoints.append(("", new_name()))
        for _, name in one.savepoints:
            if (one, name) not in self._log:
                self._execute(f"SAVEPOINT {name}")
                self._log.append((one, name))

    def set(self, one: StandIn, name: str = "") -> None:
        one.savepoints.append((name, new_name()))
        self.enter(one)

    def set_for_statement(self, one: StandIn) -> None:
        """Let the next statement be undone alone, if others have written meanwhile."""
        if self._is_used_by_others(one, -1):
            self.set(one)

    def note_write(self, one: StandIn) -> None:
        if self._log[-1] != (one, ""):
            self._log.append((one, ""))

    def fail(self, one: StandIn) -> None:
        """Undo what came after the last savepoint of a transaction that failed."""
        self._undo(one, -1)
        one.failed = True

    def rollback(self, one: StandIn) -> None:
        """Undo what a transaction has written, and end it.

        :raises IsolationError: as :meth:`rollback_to`.
        """
        try:
            self.rollback_to(one, 0, "transaction")
        finally:
            self.release(one, 0)

    def rollback_to(self, one: StandIn, number: int, what: str = "savepoint") -> None:
        """Undo what a transaction has written after a savepoint of its own.

        :raises IsolationError: when that would undo what others have written. All
            of it is kept then.
        """
        self._release_reader(one)
        if self.is_open(one):
            if not self._is_used_by_others(one, number):
                self._undo(one, number)
            elif not self.closing:
                refused = IsolationError(
                    f"A {what} was rolled back, or its session closed without a "
                    "commit, after another session wrote. Inside isolate() they share "
                    "one connection, which can't undo the work of one alone. Commit or "
                    "roll back the first before the other writes. [one-connection]"
                )
                self.refused = self.refused or refused
                raise refused
        del one.savepoints[number + 1 :]

    def release(self, one: StandIn, number: int) -> None:
        self._release_reader(one)
        if self.is_open(one):
            names = [name for _, name in one.savepoints[number:]]
            after = self._log[self._log.index((one, names[0])) :]
            self._log = [each for each in self._log if each[1] not in names]
            while self._log and not self._log[0][1]:  # what nobody can undo any more
                del self._log[0]
            # Below the savepoint of another it stays, where it does no harm, and so
            # where an interrupt comes.
            if not any(name and owner is not one for owner, name in after):
                self._execute(f"RELEASE SAVEPOINT {names[0]}")
        del one.savepoints[number:]

    def is_open(self, one: StandIn) -> bool:
        return bool(one.savepoints) and (one, one.savepoints[0][1]) in self._log

    def _undo(self, one: StandIn, number: int) -> None:
        _, name = one.savepoints[number]
        self._execute(f"ROLLBACK TO SAVEPOINT {name}")
        del self._log[self._log.index((one, name)) + 1 :]

    def _is_used_by_others(self, one: StandIn, number: int) -> bool:
        start = self._log.index((one, one.savepoints[number][1]))
        others = {owner for owner, _ in self._log[start:]} - {one}
        if number == 0 and one.session is not None:
            # A session ends the transactions of all its connections, in any order.
            others = {each for each in others if each.session != one.session}
        return bool(others)

    def _release_reader(self, one: StandIn) -> None:
        """Release the savepoints of the last transaction, if it has only read."""
        last, name = self._log[-1] if self._log else (one, "")
        if last is one or not name:
            return
        start = self._log.index((last, last.savepoints[0][1]))
        if all(name for _, name in self._log[start:]):
            self._execute(f"RELEASE SAVEPOINT {last.savepoints[0][1]}")
            del self._log[start:]
