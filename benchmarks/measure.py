"""One process of measurements: everything, by turns, so that noise hits all alike.

A round takes one sample of each case, row by row, so that the samples of a row that
are compared as pairs lie within some milliseconds of each other. Many short samples do
better than few long ones: what disturbs lasts longer than any of them. The cyclic
collector does not disturb, as `timeit` turns it off in each sample.
"""

from __future__ import annotations

import argparse
import random
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyperf

from .contestants import contestants
from .growth import CONTEXT, CURVES, LINES, USE
from .rows import Case, import_cases, memory_cases, timed_cases

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True)
class Effort:
    """How long to measure."""

    processes: int
    rounds: int
    sample: float
    """The seconds that each sample takes at least, of what is timed."""
    imports: int
    weighed: int
    """The contexts that are open at once when memory is weighed."""
    curve_rounds: int
    repetitions: dict[str, int]
    """Of each line of a curve, in each round."""
    largest: int
    """The largest size on a curve."""


EFFORTS = {
    "full": Effort(
        processes=9,
        rounds=40,
        sample=0.002,
        imports=2,
        weighed=200,
        curve_rounds=2,
        repetitions={USE: 20_000, CONTEXT: 800},
        largest=10_000,
    ),
    "quick": Effort(
        processes=1,
        rounds=1,
        sample=0.0001,
        imports=1,
        weighed=2,
        curve_rounds=1,
        repetitions={USE: 20, CONTEXT: 20},
        largest=30,
    ),
}

Samples = dict[str, list[float]]


def take(cases: list[Case], rounds: int, sample: float) -> Samples:
    """Time every case once a round, each repeated so often that a sample is long."""
    repetitions = {case.name: _repetitions(case, sample) for case in cases}
    samples: Samples = defaultdict(list)
    for case in _by_turns(cases, rounds):
        count = repetitions[case.name]
        samples[case.name].append(case.measure(count) / count)
    return samples


def _repetitions(case: Case, sample: float) -> int:
    # The least of some, the first of which is cold: with fewer repetitions than the
    # others have, a contestant would look slower.
    count = 1
    while (seconds := min(case.measure(count) for _ in range(4))) < sample:
        count = max(count * 2, int(count * sample / max(seconds, 1e-9)))
    return count


def _by_turns(cases: list[Case], rounds: int) -> Iterable[Case]:
    of_rows: dict[str, list[Case]] = defaultdict(list)
    for case in cases:
        of_rows[case.row].append(case)
    for _ in range(rounds):
        for row in of_rows.values():
            yield from random.sample(row, len(row))


def measure(sqlite_url: str, postgresql_url: str, effort: Effort) -> Samples:
    """Measure all that the report has."""
    on_sqlite = contestants(sqlite_url)
    samples = take(
        timed_cases(on_sqlite, contestants(postgresql_url)),
        effort.rounds,
        effort.sample,
    )
    for case in memory_cases(on_sqlite):
        samples[case.name].append(case.measure(effort.weighed))
    for case in _by_turns(import_cases(on_sqlite), effort.imports):
        samples[case.name].append(case.measure(1))
    for _ in range(effort.curve_rounds):
        for curve in CURVES:
            for size in curve.sizes:
                if size <= effort.largest:
                    with curve.scene(size) as scene:
                        for line, source in LINES.items():
                            samples[curve.name(size, line)].append(
                                scene.time(source, effort.repetitions[line])
                            )
    return samples


def main() -> None:
    """Measure once, and write the samples to a file of pyperf's."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("effort", choices=EFFORTS)
    parser.add_argument("sqlite_url")
    parser.add_argument("postgresql_url")
    parser.add_argument("output")
    arguments = parser.parse_args()
    samples = measure(
        arguments.sqlite_url, arguments.postgresql_url, EFFORTS[arguments.effort]
    )
    pyperf.BenchmarkSuite(
        [
            pyperf.Benchmark([pyperf.Run(values, metadata={"name": name})])
            for name, values in samples.items()
        ]
    ).dump(arguments.output)


if __name__ == "__main__":
    main()
