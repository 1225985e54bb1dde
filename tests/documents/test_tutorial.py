"""The tutorial's steps, done in order, lead to the application in examples/tutorial."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from shutil import which
from typing import TYPE_CHECKING, NamedTuple

import pytest
from markdown_it import MarkdownIt

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.documents

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "tutorial.md"
EXAMPLE = ROOT / "examples" / "tutorial"


class Step(NamedTuple):
    """A fenced block: what is to be done with it, and where it stands in the page."""

    kind: str
    what: str
    text: str
    line: int


def steps() -> Iterator[Step]:
    for token in MarkdownIt().parse(PAGE.read_text(encoding="utf-8")):
        if token.type == "fence":
            kind, _, what = token.info.partition(": ")
            assert token.map
            yield Step(kind, what, token.content, token.map[0] + 1)


class Reader:
    """Does what the tutorial says, in a directory of its own."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._ports = {port: free_port() for port in ("5000", "8000")}
        self._environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONDONTWRITEBYTECODE": "1",  # sources change within a second
        }
        self._server = ExitStack()
        self._output = ""

    def do(self, step: Step) -> None:
        file = self._directory / step.what
        match step.kind:
            case "python file":
                file.parent.mkdir(exist_ok=True)
                file.write_text(step.text, encoding="utf-8")
            case "python addition":
                with file.open("a", encoding="utf-8") as opened:
                    opened.write(f"\n\n{step.text}")
            case "sh":
                self._output = self._run(step)
            case "sh server":
                self.stop()
                self._serve(step)
            case "text output":
                assert self._output == step.text, f"{PAGE.name}:{step.line}"
            case kind:
                assert kind in ("text", "sh not run"), f"{PAGE.name}:{step.line}"

    def stop(self) -> None:
        self._server.close()

    def _script(self, step: Step) -> list[str]:
        text = step.text
        for written, port in self._ports.items():
            text = text.replace(written, str(port))
        return ["bash", "-euc", text]

    def _run(self, step: Step) -> str:
        done = subprocess.run(  # noqa: S603  # what the page says
            self._script(step),
            cwd=self._directory,
            env=self._environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert not done.returncode, f"{PAGE.name}:{step.line}: {done.stderr}"
        return done.stdout

    def _serve(self, step: Step) -> None:
        log = self._server.enter_context((self._directory / "log").open("a+"))
        server = subprocess.Popen(  # noqa: S603  # what the page says
            self._script(step),
            cwd=self._directory,
            env=self._environment,
            stdout=log,
            stderr=log,
            start_new_session=True,  # it has children, which end with it
        )

        def end() -> None:
            os.killpg(server.pid, signal.SIGTERM)
            server.wait(30)

        self._server.callback(end)
        (port,) = (
            port for written, port in self._ports.items() if written in step.text
        )
        for _ in range(300):
            with socket.socket() as client:
                if not client.connect_ex(("127.0.0.1", port)):
                    return
            time.sleep(0.1)
        log.seek(0)
        pytest.fail(f"{PAGE.name}:{step.line}: nobody answers: {log.read()}")


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port: int = server.getsockname()[1]
    return port


@pytest.mark.skipif(not which("curl"), reason="curl is not installed")
def test_the_steps_of_the_tutorial_lead_to_the_example(tmp_path: Path) -> None:
    reader = Reader(tmp_path)
    try:
        for step in steps():
            reader.do(step)
    finally:
        reader.stop()
    made = {step.what for step in steps() if step.kind.startswith("python")}
    assert made == {
        str(file.relative_to(EXAMPLE))
        for file in EXAMPLE.rglob("*.py")
        if file.parent.name != "versions"
    }
    for file in made:
        assert (tmp_path / file).read_text() == (EXAMPLE / file).read_text(), file


def test_the_examples_migrations_make_what_its_models_are(tmp_path: Path) -> None:
    for command in (["upgrade", "head"], ["check"], ["downgrade", "base"]):
        done = subprocess.run(  # noqa: S603  # Alembic, on our own example
            [sys.executable, "-m", "alembic", "-c", EXAMPLE / "alembic.ini", *command],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert not done.returncode, done.stdout + done.stderr
