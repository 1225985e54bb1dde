"""What editors offer: jedi, and a language server over its real protocol.

Both complete from what a checker knows, but not all that satisfies a checker is
understood by them: jedi, for one, does not look into a cast.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import jedi
import pytest
from sqlalchemy.orm import Session

from .test_checkers import ENVIRONMENT, ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.checkers

MEMBERS = {name for name in dir(Session) if not name.startswith("_")}

CURRENT_SESSION = """
from flask_sqlalchemy_session import current_session

current_session"""

PROXY = """
from sqlalchemy.orm import Session, sessionmaker

from flask_sqlalchemy_session import FlaskScopedSession

class ShopSession(Session):
    def count_users(self) -> int: ...

session{annotation} = FlaskScopedSession(sessionmaker(class_=ShopSession))
{expression}"""

# jedi does not solve what a protocol's type variable stands for; an editor that uses
# it knows the subclass where the annotation names it.
ANNOTATED = {"annotation": ": FlaskScopedSession[ShopSession]"}
INFERRED = {"annotation": ""}


def ask_jedi(source: str) -> tuple[jedi.Script, int, int]:
    project = jedi.Project(ROOT, environment_path=sys.prefix)
    script = jedi.Script(source, path=ROOT / "shop.py", project=project)
    lines = source.splitlines()
    return script, len(lines), len(lines[-1])


def jedi_completions(source: str) -> set[str]:
    script, line, column = ask_jedi(f"{source}.")
    return {completion.name for completion in script.complete(line, column)}


def test_jedi_completes_current_session() -> None:
    assert jedi_completions(CURRENT_SESSION) >= MEMBERS


def test_jedi_knows_that_current_session_is_a_session() -> None:
    script, line, column = ask_jedi(CURRENT_SESSION)
    names = [name.full_name for name in script.infer(line, column)]
    assert names == ["sqlalchemy.orm.session.Session"]


def test_jedi_completes_a_proxy_to_a_session_of_the_application_s_own() -> None:
    source = PROXY.format(expression="session.proxy", **ANNOTATED)
    assert jedi_completions(source) >= {*MEMBERS, "count_users"}


def test_jedi_completes_a_proxy_of_inferred_type() -> None:
    source = PROXY.format(expression="session.proxy", **INFERRED)
    assert jedi_completions(source) >= MEMBERS


class LanguageServer:
    """A client of pyright's language server, as an editor is."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._in = process.stdin
        self._out = process.stdout
        self._last_id = 0

    def request(self, method: str, params: object) -> Any:
        """Ask, and return the answer."""
        self._last_id += 1
        self._send(id=self._last_id, method=method, params=params)
        while True:
            message = self._receive()
            if "method" in message:
                if "id" in message:  # the server asks what the client can't tell
                    self._send(id=message["id"], result=None)
            elif message["id"] == self._last_id:
                assert "error" not in message, message["error"]
                return message["result"]

    def notify(self, method: str, params: object) -> None:
        self._send(method=method, params=params)

    def open(self, path: Path, source: str) -> dict[str, object]:
        """Open a file; return the position of its end, to ask about."""
        document = {
            "uri": path.as_uri(),
            "languageId": "python",
            "version": 1,
            "text": source,
        }
        self.notify("textDocument/didOpen", {"textDocument": document})
        lines = source.split("\n")
        return {
            "textDocument": {"uri": path.as_uri()},
            "position": {"line": len(lines) - 1, "character": len(lines[-1])},
        }

    def _send(self, **message: object) -> None:
        body = json.dumps({"jsonrpc": "2.0", **message}).encode()
        self._in.write(b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
        self._in.flush()

    def _receive(self) -> dict[str, Any]:
        length = 0
        while header := self._out.readline().strip():
            name, _, value = header.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        assert length, "the server has ended"
        message: dict[str, Any] = json.loads(self._out.read(length))
        return message


@pytest.fixture(scope="module")
def server() -> Iterator[LanguageServer]:
    process = subprocess.Popen(
        [sys.executable, "-m", "pyright.langserver", "--stdio"],
        cwd=ROOT,
        env=ENVIRONMENT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with process:
        server = LanguageServer(process)
        folder = {"uri": ROOT.as_uri(), "name": "root"}
        server.request(
            "initialize",
            {
                "processId": None,
                "rootUri": ROOT.as_uri(),
                "workspaceFolders": [folder],
                "capabilities": {},
            },
        )
        server.notify("initialized", {})
        yield server
        server.request("shutdown", None)
        server.notify("exit", None)


def completions(server: LanguageServer, name: str, source: str) -> set[str]:
    place = server.open(ROOT / name, f"{source}.")
    answer = server.request("textDocument/completion", place)
    return {item["label"] for item in answer["items"]}


def hover(server: LanguageServer, name: str, source: str) -> str:
    place = server.open(ROOT / name, source)
    text: str = server.request("textDocument/hover", place)["contents"]["value"]
    return text


def test_the_language_server_completes_current_session(server: LanguageServer) -> None:
    assert completions(server, "one.py", CURRENT_SESSION) >= MEMBERS


@pytest.mark.parametrize("annotation", [ANNOTATED, INFERRED])
@pytest.mark.parametrize("expression", ["session.proxy", "session()"])
def test_the_language_server_completes_a_session_of_the_application_s_own(
    server: LanguageServer, expression: str, annotation: dict[str, str]
) -> None:
    source = PROXY.format(expression=expression, **annotation)
    offered = completions(server, f"{expression}{len(source)}.py", source)
    assert offered >= {*MEMBERS, "count_users"}


def test_hovering_over_current_session_shows_a_session(server: LanguageServer) -> None:
    assert "current_session: Session" in hover(server, "hover.py", CURRENT_SESSION)


def test_hovering_over_a_proxy_shows_its_session(server: LanguageServer) -> None:
    source = PROXY.format(expression="session.proxy", **INFERRED)
    assert "proxy: ShopSession" in hover(server, "hover_proxy.py", source)
