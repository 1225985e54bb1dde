"""What a statement does to the transaction that it runs in, told from its text."""

from __future__ import annotations

import re
from functools import lru_cache

# A group that takes each character by itself would keep a state for each.
_STRING = r"'[^']*(?:''[^']*)*'"
_ESCAPED = r"'[^'\\]*(?:(?:''|\\.)[^'\\]*)*'"
_QUOTED = r'"[^"\\]*(?:(?:""|\\.)[^"\\]*)*"'
_IDENTIFIER = r'"[^"]*"|`[^`]*`|\[\w*\]'
_COMMENT = r"--[^\n]*|/\*.*?\*/"
_HIDDEN = rf"\b[eE]{_ESCAPED}|{_STRING}|\$(\w*)\$.*?\$\1\$|{_IDENTIFIER}|{_COMMENT}"
# MySQL executes what is between `/*!50000` and `*/`.
_HIDDEN_IN_MYSQL = (
    rf"{_ESCAPED}|{_QUOTED}|{_IDENTIFIER}|"
    r"--(?=\s)[^\n]*|#[^\n]*|/\*M?!\d*|/\*.*?\*/|\*/"
)

_WORD = re.compile(r"@*\w+")
_CALL = re.compile(r"\b(\w+) ?\(")
_CONTROL = re.compile(
    r"(?:BEGIN|START|COMMIT|END|ROLLBACK|ABORT|SAVEPOINT|RELEASE|\w+ TRANSACTION)\b"
)
_DML = re.compile(r"(?:INSERT|UPDATE|DELETE|REPLACE)\b")
_READ = re.compile(
    r"\W*(?:SELECT|VALUES|SHOW|WITH|EXPLAIN|TABLE|DESCRIBE|DESC|PRAGMA|SET|RESET|USE|"
    r"DECLARE|FETCH|MOVE|CLOSE|LISTEN|NOTIFY|UNLISTEN|LOCK|UNLOCK|DEALLOCATE|HELP|KILL|"
    r"DO(?! ''| LANGUAGE)|COPY(?=.* TO (?:''|STDOUT|PROGRAM)))\b"
)
_CHANGE = re.compile(
    r"\b(?:INSERT|(?<!FOR )(?<!KEY )UPDATE|DELETE|MERGE|INTO)\b|"
    r"^PRAGMA (?:\w+\.)?(?:(?:APPLICATION_ID|SCHEMA_VERSION|USER_VERSION) ?[=(]|"
    r"INCREMENTAL_VACUUM|OPTIMIZE)|^SET STATEMENT\b"
)
_BODY = re.compile(r"BEGIN NOT ATOMIC\b|CREATE\b.*\bBEGIN\b")
_MYSQL_COMMITS = re.compile(
    r"(?:ALTER|CACHE|CHANGE|CHECK|CREATE|DROP|FLUSH|GRANT|INSTALL|LOCK|OPTIMIZE|RENAME|"
    r"REPAIR|RESET|REVOKE|SHUTDOWN|STOP|TRUNCATE|UNINSTALL|SET PASSWORD|"
    r"SET DEFAULT ROLE|ANALYZE (?:\w+ )?TABLE)\b"
    r"(?! PREPARE\b|(?: OR REPLACE)? TEMPORARY (?!SEQUENCE\b))|"
    r"(?:BEGIN NOT ATOMIC|SET STATEMENT)\b.*"
    r"\b(?:COMMIT|ROLLBACK|START|CREATE|ALTER|DROP|TRUNCATE|RENAME|LOCK)\b"
)
_KEEPS = re.compile(r"PREPARE\b")
_MYSQL_KEEPS = re.compile(r"(?:SET|USE|PREPARE|CREATE (?:OR REPLACE )?TEMPORARY)\b")
_LOCK = re.compile(r"\b(?:GET_LOCK|PG_(?:TRY_)?ADVISORY_LOCK(?:_SHARED)?) ?\(")


class Statement:
    """One string that a driver is given to execute: one statement or several."""

    def __init__(self, text: str, database: str) -> None:
        hidden = _HIDDEN_IN_MYSQL if database == "mysql" else _HIDDEN
        bare = re.sub(hidden, _uncover, text, flags=re.DOTALL)
        #: In capitals, without strings, comments and more space than it needs.
        self.text = " ".join(bare.upper().split())
        self.parts = [one.strip() for one in self.text.split(";") if _WORD.search(one)]
        self.words = _WORD.findall(self.text)[:5]
        #: What an error calls it.
        self.kind = " ".join(self.words[:3]) or "statement"
        #: Whether it changes rows, and nothing else.
        self.is_dml = bool(_DML.match(self.text))
        #: Whether it has changed nothing when it fails.
        self.is_whole = (
            self.is_dml or database != "mysql"
        ) and " OR FAIL " not in self.text
        #: Whether it may change something. In doubt it does.
        self.writes = not self.parts or not all(
            _READ.match(part) and not _CHANGE.search(part) for part in self.parts
        )
        #: The functions that it may call, in capitals.
        self.calls = {*_CALL.findall(self.text)}
        #: Whether MySQL commits before it, whatever it does.
        self.commits = database == "mysql" and bool(_MYSQL_COMMITS.match(self.text))
        #: Whether the connection keeps something of it, whatever is rolled back.
        keeps = _MYSQL_KEEPS if database == "mysql" else _KEEPS
        self.stays = bool(_LOCK.search(self.text) or any(map(keeps.match, self.parts)))
        #: What one of several does to the transaction, if one does.
        self.controls: str | None = None
        # Bodies consist of statements, those of triggers and functions too.
        if len(self.parts) > 1 and database != "sqlite" and not _BODY.match(self.text):
            for one in (Statement(part, database) for part in self.parts):
                if one.commits or _CONTROL.match(one.text):
                    self.controls = one.kind


def _uncover(hidden: re.Match[str]) -> str:
    """Leave what a name may mean, and nothing of strings and comments."""
    found = hidden[0]
    if found[0] in '"`[':
        return re.sub(r"\W", "_", found[1:-1])
    return "''" if found[0] in "'eE$" else " "


@lru_cache(maxsize=1024)
def parse(text: str, database: str) -> Statement:
    return Statement(text, database)
