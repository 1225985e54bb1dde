"""What a statement does to the transaction that it runs in, told from its text."""

from __future__ import annotations

import re
from functools import lru_cache

from ._errors import IsolationError

MYSQL = frozenset({"mysql", "mariadb"})

_STRING = r"'(?:[^']|'')*'"
_ESCAPED = r"'(?:[^'\\]|''|\\.)*'"
_QUOTED = r'"(?:[^"\\]|""|\\.)*"'
_IDENTIFIER = r'"[^"]*"|`[^`]*`|\[\w*\]'
_COMMENT = r"--[^\n]*|/\*.*?\*/"
_HIDDEN = {
    # MySQL executes what is between `/*!50000` and `*/`.
    True: rf"{_ESCAPED}|{_QUOTED}|{_IDENTIFIER}|"
    r"--(?=\s)[^\n]*|#[^\n]*|/\*M?!\d*|/\*.*?\*/|\*/",
    False: rf"\b[eE]{_ESCAPED}|{_STRING}|\$(\w*)\$.*?\$\1\$|{_IDENTIFIER}|{_COMMENT}",
}

_WORD = re.compile(r"@*\w+")
_CHANGE = re.compile(r"\b(?:INSERT|UPDATE|DELETE|MERGE|INTO)\b", re.IGNORECASE)
_LOCKING = re.compile(r"\bFOR\s+(?:NO\s+KEY\s+)?UPDATE\b", re.IGNORECASE)
_BEGIN = re.compile(r"\bBEGIN\b", re.IGNORECASE)
_READ_ONLY = re.compile(r"\bREAD\s+ONLY\b", re.IGNORECASE)
_AUTOCOMMIT = re.compile(
    r"(?<!GLOBAL\.)(?<!GLOBAL )\bautocommit\s*:?=\s*(\w+)", re.IGNORECASE
)
_CALL = re.compile(r"(\w+)\s*\(")
_COMMITS_IN_BLOCK = re.compile(
    r"\b(?:COMMIT|ROLLBACK|START|CREATE|ALTER|DROP|TRUNCATE|RENAME|LOCK)\b",
    re.IGNORECASE,
)


def words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_CONTROL = words("BEGIN START COMMIT END ROLLBACK ABORT SAVEPOINT RELEASE")
_DML = words("INSERT UPDATE DELETE REPLACE")
_READS = words("SELECT VALUES SHOW WITH EXPLAIN TABLE")
_READS_ON = {
    "postgresql": words(
        "SET RESET DECLARE FETCH MOVE CLOSE LISTEN UNLISTEN LOCK DEALLOCATE"
    ),
    "mysql": words("SET DESCRIBE DESC USE HELP DO KILL UNLOCK"),
}
_MYSQL_COMMITS = words(
    "ALTER CACHE CHANGE CHECK CREATE DROP FLUSH GRANT INSTALL LOCK OPTIMIZE RENAME "
    "REPAIR RESET REVOKE SHUTDOWN STOP TRUNCATE UNINSTALL"
)
_OBJECTS = words(
    "DATABASE EVENT FUNCTION INDEX PROCEDURE ROLE SCHEMA SEQUENCE TABLE TABLES "
    "TRIGGER UNIQUE USER VIEW TABLESPACE SYSTEM PASSWORD NOT TRANSACTION"
)


class Statement:
    """One string that a driver is given to execute: one statement or several."""

    def __init__(self, text: str, database: str) -> None:
        self.database = "mysql" if database in MYSQL else database
        bare = re.sub(
            _HIDDEN[self.database == "mysql"], _uncover, text, flags=re.DOTALL
        )
        self.parts = [part for part in bare.split(";") if _WORD.search(part)]
        #: The first words, in capitals.
        self.words = self._words_of(self.parts[0]) if self.parts else []
        self.bare = bare

    @staticmethod
    def _words_of(part: str) -> list[str]:
        return [word.upper() for word in _WORD.findall(part)[:5]]

    @property
    def kind(self) -> str:
        """What an error calls it."""
        first, second = [*self.words, "", ""][:2]
        return f"{first} {second}" if second in _OBJECTS else first or "statement"

    @property
    def is_dml(self) -> bool:
        return bool(self.words) and self.words[0] in _DML

    @property
    def chains(self) -> bool:
        """Whether it ends a transaction and begins the next one."""
        return "CHAIN" in self.words and "NO" not in self.words

    def controlling_part(self) -> str | None:
        """Return what one of several does to the transaction, if one does."""
        # Bodies consist of statements, those of triggers and functions too.
        compound = self.words[:2] == ["BEGIN", "NOT"] or (
            self.words[:1] == ["CREATE"] and _BEGIN.search(self.bare)
        )
        if len(self.parts) < 2 or self.database == "sqlite" or compound:
            return None
        for part in self.parts:
            one = Statement(part, self.database)
            controls = one.words[:1] and one.words[0] in _CONTROL
            if controls or one.words[1:2] == ["TRANSACTION"] or one.commits():
                return one.kind
        return None

    def refuse_read_only(self) -> None:
        """Refuse what a transaction can't be inside the block.

        :raises IsolationError: when it is to be read only.
        """
        if _READ_ONLY.search(self.bare):
            raise IsolationError(
                f"{self.kind} READ ONLY can't be done inside isolate(), where the "
                "sessions of an engine share one transaction. [begin-read-only]"
            )

    def autocommit(self) -> str | None:
        """Return what a SET of MySQL sets autocommit to, if it does.

        :raises IsolationError: when it sets something else, too.
        """
        found = _AUTOCOMMIT.search(self.bare) if self.database == "mysql" else None
        if found is not None and "," in self.bare:
            raise IsolationError(
                "Inside isolate() autocommit can't be set in one statement with "
                "something else. Set it alone. [set-autocommit]"
            )
        return None if found is None else found[1].upper()

    def writes(self) -> bool:
        """Tell whether it may change something. In doubt it does."""
        return any(self._writes(part) for part in self.parts) or not self.parts

    def _writes(self, part: str) -> bool:
        words = self._words_of(part)
        if words[0] == "PRAGMA":
            return "=" in part
        if words[0] == "EXPLAIN" and not re.search(r"(?i)\bANALYZE\b", part):
            return False
        if words[:2] == ["SET", "STATEMENT"]:
            return _CHANGE.search(part) is not None
        if words[0] in _READS:
            return _CHANGE.search(_LOCKING.sub("", part)) is not None
        return words[0] not in _READS_ON.get(self.database, ())

    def calls(self) -> set[str]:
        """Return the names of the functions that it may call, in small letters."""
        return {name.lower() for name in _CALL.findall(self.bare)}

    def commits(self) -> bool:
        """Tell whether MySQL commits before it, whatever it does."""
        if self.database != "mysql":
            return False
        match self.words:
            case ["CREATE" | "DROP", *rest] if "TEMPORARY" in rest:
                return False
            case ["ANALYZE", *rest]:
                return "TABLE" in rest
            case ["BEGIN", "NOT", "ATOMIC", *_] | ["SET", "STATEMENT", *_]:
                return _COMMITS_IN_BLOCK.search(self.bare, 5) is not None
            case [first, *rest]:
                password = first == "SET" and rest[:1] == ["PASSWORD"]
                return password or first in _MYSQL_COMMITS
            case _:
                return False


def _uncover(hidden: re.Match[str]) -> str:
    """Leave what a name may mean, and nothing of strings and comments."""
    found = hidden[0]
    if found[0] in '"`[':
        return re.sub(r"\W", "_", found[1:-1])
    return "''" if found[0] in "'eE$" else " "


@lru_cache(maxsize=1024)
def parse(text: str, database: str) -> Statement:
    return Statement(text, database)
