"""`python -m benchmarks`: measure, and write `docs/benchmarks.md` and its chart."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pyperf

from . import report
from .contestants import created_users
from .measure import EFFORTS
from .postgresql import postgresql_url


def _measure(
    effort: str, sqlite: str, postgresql: str, directory: str
) -> pyperf.BenchmarkSuite:
    """Measure in one process after the other, and put all together."""
    suite: pyperf.BenchmarkSuite | None = None
    for number in range(EFFORTS[effort].processes):
        print(f"process {number + 1} of {EFFORTS[effort].processes}", flush=True)  # noqa: T201  # a command's output
        file = f"{directory}/{number}.json"
        subprocess.run(  # noqa: S603  # our own program
            [
                *(sys.executable, "-m", "benchmarks.measure"),
                *(effort, sqlite, postgresql, file),
            ],
            check=True,
        )
        measured = pyperf.BenchmarkSuite.load(file)
        if suite is None:
            suite = measured
        else:
            suite.add_runs(measured)
    assert suite is not None
    return suite


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="see that it runs; the figures say nothing"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("docs"), metavar="DIRECTORY"
    )
    arguments = parser.parse_args()
    effort = "quick" if arguments.quick else "full"
    output: Path = arguments.output
    output.mkdir(exist_ok=True)
    with TemporaryDirectory() as directory, postgresql_url(directory) as postgresql:
        sqlite = f"sqlite:///{directory}/benchmarks.sqlite3"
        with created_users(sqlite), created_users(postgresql):
            suite = _measure(effort, sqlite, postgresql, directory)
    results = report.Results(suite)
    page = report.markdown(results)
    (output / "benchmarks.md").write_text(page, encoding="utf-8")
    report.draw(results, output / "benchmarks.svg")
    print(page)  # noqa: T201  # a command's output


if __name__ == "__main__":
    main()
