"""Measure, and write the tables and the chart of `docs/benchmarks.md`."""

from __future__ import annotations

import argparse
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from pyperf import BenchmarkSuite

from .chart import chart
from .contestants import FLOORS, OURS, PEERS, created_users
from .measure import CURVES, GROWN, amount, cell
from .shared import postgresql_url, table, write

if TYPE_CHECKING:
    from collections.abc import Iterable

PACKAGES = [
    *("flask", "werkzeug", "sqlalchemy", "psycopg"),
    *(peer.lower().replace(" ", "-") for peer in PEERS),
]


def measure(processes: int, rounds: int) -> BenchmarkSuite:
    """Measure in one process after the other, and put all together."""
    suites = []
    with TemporaryDirectory() as directory, postgresql_url(directory) as postgresql:
        sqlite = f"sqlite:///{directory}/benchmarks.sqlite3"
        file = f"{directory}/measured.json"
        command = [sys.executable, "-m", "benchmarks.measure"]
        command += [sqlite, postgresql, str(rounds), file]
        with created_users(sqlite), created_users(postgresql):
            for _ in range(processes):
                subprocess.run(command, check=True)  # noqa: S603  # our own program
                suites.append(BenchmarkSuite.load(file))
    whole, *others = suites
    for other in others:
        whole.add_runs(other)
    return whole


def report(suites: list[BenchmarkSuite]) -> str:
    """Return what is shown: tables in Markdown.

    :param suites: what was measured, and then what other interpreters have.
    """
    suite = suites[0]
    cells = [name.partition(" | ") for name in suite.get_benchmark_names()]
    rows = [row for row, _, column in cells if column == OURS]
    peers = [[row, *_amounts(suite, row, PEERS)] for row in rows]
    floors = [[row, *_amounts(suite, row, FLOORS)] for row in rows]
    ratios = [[row, *(_ratio(each, row) for each in suites)] for row in rows]
    interpreters = [_about(each)["python_version"].split()[0] for each in suites]
    return "\n".join(
        [
            _conditions(suite),
            "## Beside the alternatives\n",
            table(["what", OURS, *PEERS], peers),
            "The floors, of which none looks for the current context:\n",
            table(["what", OURS, *FLOORS], floors),
            "## To the best peer, on each interpreter\n",
            table(["what", *interpreters], ratios),
            "## How cost grows\n\nTime for each use, by all threads together.\n",
            *(_growth(suite, row) for row in GROWN),
        ]
    )


def _about(suite: BenchmarkSuite) -> dict[str, str]:
    about = suite.get_benchmarks()[0].get_metadata()
    return {key: str(value) for key, value in about.items()}


def _conditions(suite: BenchmarkSuite) -> str:
    about = _about(suite)
    runs = suite.get_benchmarks()[0].get_runs()
    versions = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
    return (
        f"Measured with Python {about['python_version']}, {versions}, on "
        f"{about['platform']}, {about['cpu_count']} processors "
        f"({about['cpu_model_name']}), in {len(runs)} process(es) of "
        f"{len(runs[0].values)} rounds.\n"
    )


def _best(suite: BenchmarkSuite, row: str) -> str:
    return min(PEERS, key=lambda peer: suite.get_benchmark(cell(row, peer)).median())


def _amounts(suite: BenchmarkSuite, row: str, others: Iterable[str]) -> list[str]:
    """Return the medians of a row, of which ours and the best peer's stand out."""
    amounts = []
    for column in (OURS, *others):
        if cell(row, column) not in suite.get_benchmark_names():
            amounts.append("n/a")
            continue
        bold = "**" if column in (OURS, _best(suite, row)) else ""
        amounts.append(f"{bold}{amount(suite.get_benchmark(cell(row, column)))}{bold}")
    return amounts


def _ratio(suite: BenchmarkSuite, row: str) -> str:
    """Compare with the best peer, within each round of each process."""
    ours = suite.get_benchmark(cell(row, OURS)).get_runs()
    theirs = suite.get_benchmark(cell(row, _best(suite, row))).get_runs()
    ratios = [
        median(mine / its for mine, its in zip(a.values, b.values, strict=True))
        for a, b in zip(ours, theirs, strict=True)
    ]
    return f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def _growth(suite: BenchmarkSuite, row: str) -> str:
    lines = []
    for curve, sizes in CURVES.items():
        costs = [suite.get_benchmark(cell(row, f"{size} {curve}")) for size in sizes]
        shown = (f"{n}: {amount(cost)}" for n, cost in zip(sizes, costs, strict=True))
        ratio = costs[-1].median() / costs[0].median()
        lines.append([curve, ", ".join(shown), f"{ratio:.2f}"])
    return table([row, "median at each size", "last to first"], lines)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    add = parser.add_argument
    add("--quick", action="store_true", help="one process; shows, and writes nothing")
    add("--processes", type=int, default=5)
    add("--rounds", type=int, default=40, help="of each process")
    add("--page", type=Path, default=Path("docs/benchmarks.md"))
    add("--beside", nargs="*", default=[], metavar="FILE", help="saved elsewhere")
    add("--save", metavar="FILE", help="for `python -m pyperf compare_to`")
    arguments = parser.parse_args()
    suite = measure(1 if arguments.quick else arguments.processes, arguments.rounds)
    shown = report([suite, *map(BenchmarkSuite.load, arguments.beside)])
    print(shown)  # noqa: T201  # a command's output
    if arguments.save:
        suite.dump(arguments.save, replace=True)
    if not arguments.quick:
        write(arguments.page, shown)
        arguments.page.with_suffix(".svg").write_text(chart(suite), encoding="utf-8")


if __name__ == "__main__":
    main()
