"""Measure, and write the tables of `docs/benchmarks.md` and the chart beside it."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pyperf

from .contestants import created_users
from .postgresql import postgresql_url
from .report import Results, chart, page

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- measured: begin -->\n", "<!-- measured: end -->\n"


def _environment(interpreter: str, directory: str) -> str:
    """Make an environment for another interpreter, and return its Python."""
    python = f"{directory}/bin/python"
    uv = (sys.executable, "-m", "uv", "--quiet", "--no-python-downloads")
    for command in (
        (*uv, "venv", "--python", interpreter, directory),
        (*uv, "pip", "install", "--python", python, f"{ROOT}[benchmarks]"),
    ):
        subprocess.run(command, check=True)  # noqa: S603  # our own words
    return python


def _measure(
    python: str, processes: int, rounds: int, urls: list[str], directory: str
) -> pyperf.BenchmarkSuite:
    """Measure in one process after the other, and put all together."""
    suites, file = [], f"{directory}/measured.json"
    for _ in range(processes):
        command = [python, "-m", "benchmarks.measure", *urls, str(rounds), file]
        subprocess.run(command, check=True, cwd=ROOT)  # noqa: S603  # our own program
        suites.append(pyperf.BenchmarkSuite.load(file))
    whole, *others = suites
    for other in others:
        whole.add_runs(other)
    return whole


def _write(output: Path, results: list[Results]) -> None:
    file = output / "benchmarks.md"
    before, _, rest = file.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    text = f"{before}{BEGIN}\n{page(results)}\n{END}{after}"
    file.write_text(text, encoding="utf-8")
    drawing = chart(results[0])
    (output / "benchmarks.svg").write_text(drawing, encoding="utf-8")


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    add = parser.add_argument
    add("--quick", action="store_true", help="one process; shows, and writes nothing")
    add("--processes", type=int, default=5, metavar="N")
    add("--rounds", type=int, default=40, metavar="N", help="of each process")
    add("--python", action="append", default=[], metavar="PYTHON", help="one more")
    add("--output", type=Path, metavar="DIRECTORY", help="where to write, not docs/")
    add("--save", metavar="FILE", help="for `python -m pyperf compare_to`")
    arguments = parser.parse_args()
    output = arguments.output or (None if arguments.quick else ROOT / "docs")
    processes = 1 if arguments.quick else arguments.processes
    with TemporaryDirectory() as directory, postgresql_url(directory) as postgresql:
        urls = [f"sqlite:///{directory}/benchmarks.sqlite3", postgresql]
        pythons = [sys.executable]
        for number, interpreter in enumerate(arguments.python):
            pythons.append(_environment(interpreter, f"{directory}/{number}"))
        with created_users(urls[0]), created_users(urls[1]):
            results = [
                Results(_measure(python, processes, arguments.rounds, urls, directory))
                for python in pythons
            ]
    print(page(results))  # noqa: T201  # a command's output
    if arguments.save:
        results[0].suite.dump(arguments.save, replace=True)
    if output:
        _write(output, results)


if __name__ == "__main__":
    main()
