"""The Python code of the documents and docstrings runs, and has the types it shows."""

from __future__ import annotations

import ast
import inspect
import re
import sqlite3
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

import pytest
from docutils import nodes
from docutils.core import publish_doctree
from docutils.parsers.rst import roles
from flask import Flask
from markdown_it import MarkdownIt
from sqlalchemy import Connection, Engine, event

import flask_sqlalchemy_session

if TYPE_CHECKING:
    from collections.abc import Iterator

    from markdown_it.token import Token

ROOT = Path(__file__).parents[2]
PACKAGE = Path(inspect.getfile(flask_sqlalchemy_session)).parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])

# Each fenced block says what it is, and one of any other kind, or of none, is refused:
#
#     python                        runs, with the others of its section
#     python continued              runs after the section before it
#     python unchecked: REASON      runs, and no type checker sees it
#     python not run: REASON        is not run
#     python file: PATH             is saved there, by test_tutorial.py
#     python addition: PATH         is added to it, by the same
PYTHON = re.compile(
    r"python(?P<kind> continued| unchecked: .+| not run: .+| (file|addition): .+)?"
)
ELSEWHERE = (" not run", " file", " addition")
NOT_PROGRAMS = {"sh", "text", "toml", "ini", "json", "sql"}
# Of these none has code in it.
DIRECTIVES = {"{eval-rst}", "{image}", "{include}", "{raw}", "{toctree}"}

# What a docstring may use without saying where it is from.
PRELUDE = """
import unittest
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from flask import Flask
from flask_sqlalchemy_session import FlaskScopedSession
from flask_sqlalchemy_session.asyncio import use_one_event_loop
from flask_sqlalchemy_session.testing import isolate
from sqlalchemy import StaticPool, create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker

class Base(DeclarativeBase):
    pass

class User(Base):
    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]

app = Flask("shop")
engine = create_engine("sqlite://", poolclass=StaticPool)
session = FlaskScopedSession(sessionmaker(engine), app)
"""


class Program(NamedTuple):
    """Code with empty lines before it, so that its lines are those of its source."""

    source: Path
    line: int
    code: str
    checked: bool = True

    @property
    def name(self) -> str:
        return re.sub(r"\W", "_", f"{self.source.stem}_{self.line}".lower())


def is_known(token: Token) -> bool:
    kind = (token.info.split() or [""])[0]
    return token.type == "fence" and kind in NOT_PROGRAMS | DIRECTIVES


def programs_in(document: Path, text: str) -> list[Program]:
    """Return the programs of a document: the Python blocks of each section are one."""
    sections: list[list[Token]] = [[]]
    for token in MarkdownIt().parse(text):
        if token.type == "heading_open" and token.tag in ("h1", "h2"):
            sections.append([])
        elif token.type == "fence" and (python := PYTHON.fullmatch(token.info)):
            kind = python["kind"] or ""
            if kind == " continued":
                before = max(index for index, blocks in enumerate(sections) if blocks)
                sections[before].append(token)
            elif not kind.startswith(ELSEWHERE):
                sections[-1].append(token)
        elif token.type in ("code_block", "fence") and not is_known(token):
            raise ValueError(
                f"{document.name}:{first_line(token)}: a block of no known kind"
            )
    return [program_of(document, blocks) for blocks in sections if blocks]


def python_blocks_in(text: str) -> list[str]:
    """Return the Python blocks of a document, those too that are not run."""
    return [
        token.content
        for token in MarkdownIt().parse(text)
        if token.type == "fence" and PYTHON.fullmatch(token.info)
    ]


def first_line(token: Token) -> int:
    assert token.map
    return token.map[0] + 1


def program_of(document: Path, blocks: list[Token]) -> Program:
    lines: list[str] = []
    for block in blocks:
        lines += [""] * (first_line(block) - len(lines))
        lines += block.content.splitlines()
    checked = not any("unchecked" in block.info for block in blocks)
    return Program(
        document, first_line(blocks[0]), "\n".join(lines) + "\n", checked=checked
    )


def links_in(text: str) -> list[str]:
    return [
        str(part.attrs["href"])
        for token in MarkdownIt().parse(text)
        for part in token.children or []
        if part.type == "link_open"
    ]


def docstrings_in(module: Path) -> list[ast.Constant]:
    """Return the strings that stand by themselves, those of attributes too."""
    return [
        node.value
        for node in ast.walk(ast.parse(module.read_text(encoding="utf-8")))
        if isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    ]


def blocks_in(docstring: str) -> list[str]:
    """Return the literal blocks of a docstring."""
    document = publish_doctree(
        inspect.cleandoc(docstring),
        settings_overrides={
            "halt_level": 5,
            "report_level": 5,
            "syntax_highlight": "none",
        },
    )
    if any(document.findall(nodes.doctest_block)):
        raise ValueError("write a literal block, which is run, for a doctest")
    return [block.astext() for block in document.findall(nodes.literal_block)]


def programs_of_docstrings() -> list[Program]:
    return [
        Program(module, docstring.lineno + index, f"{PRELUDE}{block}\n")
        for module in sorted(PACKAGE.rglob("*.py"))
        for docstring in docstrings_in(module)
        for index, block in enumerate(blocks_in(str(docstring.value)))
    ]


for _role in ("attr", "class", "data", "exc", "func", "meth", "mod", "obj"):
    roles.register_generic_role(_role, nodes.literal)

PROGRAMS = [
    program
    for document in DOCUMENTS
    for program in programs_in(document, document.read_text(encoding="utf-8"))
] + programs_of_docstrings()


def program_with(code: str) -> Program:
    return next(program for program in PROGRAMS if code in program.code)


def run(program: Program) -> dict[str, object]:
    """Run a program as a module, which is where SQLAlchemy looks annotations up."""
    module = sys.modules[program.name] = ModuleType(program.name)
    code = compile(program.code, str(program.source), "exec", dont_inherit=True)
    try:
        exec(code, vars(module))  # noqa: S102  # it is ours
    finally:
        del sys.modules[program.name]
    return vars(module)


@pytest.fixture(autouse=True)
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Give the programs a directory for their files, and dispose their engines."""
    monkeypatch.chdir(tmp_path)
    engines: set[Engine] = set()

    def note(connection: Connection) -> None:
        engines.add(connection.engine)

    event.listen(Engine, "engine_connect", note)
    yield
    event.remove(Engine, "engine_connect", note)
    for engine in engines:
        engine.dispose()


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
def test_a_program_runs(program: Program) -> None:
    if "from flask_sqlalchemy_lite" in program.code:
        pytest.importorskip("flask.sansio", reason="what it imports needs Flask 3")
    if "from queryspy" in program.code:
        pytest.importorskip("queryspy", reason="it needs Python 3.11")
    run(program)


@pytest.mark.checkers
def test_the_programs_have_the_types_they_show(tmp_path: Path) -> None:
    programs = [program for program in PROGRAMS if program.checked]
    for program in programs:
        (tmp_path / f"{program.name}.py").write_text(program.code, encoding="utf-8")
    checked = subprocess.run(  # noqa: S603  # mypy, on our own code
        [sys.executable, "-m", "mypy", "--config-file=mypy.ini", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert f"in {len(programs)} source files" in checked.stdout


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_links_within_the_repository_lead_somewhere(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    for link in links_in(text):
        if not urlsplit(link).scheme:
            assert (document.parent / urlsplit(link).path).exists(), link


def test_links_are_found() -> None:
    assert links_in("See [a](b.md#c) and\n\n- [d](e)\n") == ["b.md#c", "e"]


def test_the_first_example_serves() -> None:
    app = run(program_with("def version"))["app"]
    assert isinstance(app, Flask)
    answer = app.test_client().get("/version").get_json()
    assert answer == {"sqlite": sqlite3.sqlite_version}


def test_a_view_of_the_readme_answers_404() -> None:
    names = run(program_with("def answer_not_found"))
    create_app = names["create_app"]
    assert callable(create_app)
    client = create_app().test_client()
    assert client.get("/users/1").get_json() == {"id": 1, "name": "Ann"}
    response = client.get("/users/2")
    assert response.status_code == 404
    assert response.get_json() == {"error": "There is no such user."}


def test_the_first_example_has_ten_lines_of_code() -> None:
    program = program_with("def version")
    assert program.source.name == "README.md"
    assert len([line for line in program.code.splitlines() if line]) <= 10


def test_the_readme_has_programs_and_so_have_docstrings() -> None:
    assert {"README.md", "_owner.py"} <= {each.source.name for each in PROGRAMS}


@pytest.mark.parametrize(
    "text",
    [
        "```\nx = 1\n```",
        "```py\nx = 1\n```",
        "    x = 1",
        "~~~\nx\n~~~",
        "```python not run\nx\n```",
        "```{code-block} python\nx\n```",
    ],
    ids=["no kind", "unknown kind", "indented", "tildes", "no reason", "directive"],
)
def test_a_block_of_no_known_kind_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"page\.md:3: a block of no known kind"):
        programs_in(Path("page.md"), f"# Page\n\n{text}\n")


def test_a_program_fails_at_its_line_in_the_document() -> None:
    text = "# Page\n\n```python\nx = 1\n```\n\nAnd\n\n```python\nassert x == 2\n```\n"
    (program,) = programs_in(Path("page.md"), text)
    with pytest.raises(AssertionError) as raised:
        run(program)
    assert raised.traceback[-1].lineno + 1 == 10


def test_sections_are_programs_of_their_own() -> None:
    text = "# A\n\n```python\nx = 1\n```\n\n## B\n\n```python\nx\n```\n"
    first, second = programs_in(Path("page.md"), text)
    run(first)
    with pytest.raises(NameError):
        run(second)


def test_a_continued_block_goes_on_with_the_section_before() -> None:
    text = "# A\n\n```python\nx = 1\n```\n\n## B\n\n```python continued\nx\n```\n"
    (program,) = programs_in(Path("page.md"), text)
    run(program)


def test_a_block_that_says_why_is_not_run() -> None:
    text = "# A\n\n```python not run: it is of the old library\n1 / 0\n```\n"
    assert not programs_in(Path("page.md"), text)


def test_a_block_that_says_why_is_run_unchecked() -> None:
    text = "# A\n\n```python unchecked: it has no types\nx = 1\n```\n"
    (program,) = programs_in(Path("page.md"), text)
    assert not program.checked
    assert run(program)["x"] == 1


def test_a_doctest_is_refused() -> None:
    with pytest.raises(ValueError, match="write a literal block"):
        blocks_in("Add.\n\n>>> 1 + 1\n2\n")
