"""The report: one page of Markdown and one chart."""

from __future__ import annotations

from importlib.metadata import version
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

from matplotlib import rc_context
from matplotlib.figure import Figure
from scipy.stats import quantile_test

from . import rows
from .contestants import BY_THREAD, EMPTY_HOOK, FLOOR, OURS
from .growth import CURVES, LINES
from .rows import ROWS, name

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from matplotlib.axes import Axes
    from pyperf import Benchmark, BenchmarkSuite

BY_CONTEXT = [
    "Flask-SQLAlchemy",
    "Flask-SQLAlchemy-Lite",
    "Advanced Alchemy",
    "Alchemical",
    "svcs",
]
PEERS = [BY_THREAD, *BY_CONTEXT]

PACKAGES = [
    "flask",
    "werkzeug",
    "sqlalchemy",
    "psycopg",
    "flask-sqlalchemy",
    "flask-sqlalchemy-lite",
    "advanced-alchemy",
    "alchemical",
    "svcs",
    "pyperf",
    "scipy",
]

INTRODUCTION = """\
# What it costs

Written by `python -m benchmarks`, which measures everything on this page in one run:
every contestant in turn, in rounds, in each of several processes. A cell is the median
of all rounds. A ratio is that of samples of the same round, which other load on the
machine changes little: the median of a process's rounds, and of those the median of
the processes. Below 1, this library is the faster or the smaller.

"By hand" is the floor, what Python, Flask and SQLAlchemy cost alone: a session in an
attribute of an object in a context variable, `with Session(engine)` in a view or a
context, and Flask without any hook. Each peer is used as it documents. `scoped_session`
is SQLAlchemy's own with its default scope, the thread, and a teardown hook that removes
it, as Flask's documentation has it. Contexts that are open at once in a thread share
its session, so that it has no memory of its own to compare, and it need not find the
context. The peers "by context" are all but it.
"""

SAME_WAY = """\
A peer has one way to its session, which stands in each row that compares it with one
of this library's: Flask-SQLAlchemy's `db.session()` and `db.session.is_active`,
`db.session` of Flask-SQLAlchemy-Lite and Alchemical, `alchemy.get_sync_session()` of
Advanced Alchemy, and `svcs.flask.get(Session)`.
"""

INTERVALS = """\
In brackets, what the ratio is with a confidence of at least 95 %, by how much the
processes differ. Where that is on both sides of the most that it should be, the
difference is within noise.
"""

REASONS = """\
Where this library is not the least:

- *Reaching the session.* `scoped_session` reads one attribute of the thread. A session
  of the context is found through Flask's context variable, the context's `g` and a
  dictionary of the context's sessions, and a proxy adds a call. The session behind
  `current_session`, of which an application has little need, is reached by an attribute
  of the proxy, `_get_current_object`, and a call of that.
- *A context that uses its session once.* The first look at `g` fails, which costs an
  exception, a microsecond, as `g` makes it from another. `g.get` has none, but makes
  each later use 75 ns slower. A class for `g` that has a default there has none either
  (0.85 µs less for each context), but makes each later use 25 to 50 ns slower.
- *A request.* A session that lasts until the teardown costs more than one that the
  view closes: with `g` and a bare hook a request that reads a row from SQLite took 8 to
  11 µs more than by hand. The rest is what a context costs, with cold caches, as a
  sample is a few requests between those of others. Counted in instructions, which no
  noise can change, the request is about 5 % more than by hand, 3 % more than
  `scoped_session` and as much as Flask-SQLAlchemy.
- *Import.* This library imports Flask, SQLAlchemy's ORM and its own seven modules,
  which take about a hundredth of what those take. A difference beyond that is noise.
- *Memory.* About 560 bytes more than by hand: 220 for the context's dictionary of
  sessions, 145 for the weak reference by which a forked child finds and disowns what it
  has inherited, 70 for the object that closes what every teardown missed, and the
  rest for its place in `g`. Flask-SQLAlchemy has one dictionary for all contexts.
"""


class Ratio(NamedTuple):
    """How much more this library costs than another, and how sure that is."""

    value: float
    low: float
    high: float

    def at_most(self, bound: float) -> str:
        if self.high <= bound:
            return "yes"
        return "no" if self.low > bound else "within noise"


class Results:
    """The measurements of a whole run."""

    def __init__(self, suite: BenchmarkSuite) -> None:
        self.suite = suite
        self._names = set(suite.get_benchmark_names())

    def benchmark(self, row: str, contestant: str) -> Benchmark:
        return self.suite.get_benchmark(name(row, contestant))

    def has(self, row: str, contestant: str) -> bool:
        return name(row, contestant) in self._names

    def best_peer(self, row: str, among: list[str] = PEERS) -> str:
        return min(
            (peer for peer in among if self.has(row, peer)),
            key=lambda peer: self.benchmark(row, peer).median(),
        )

    def ratio(self, row: str, other: str) -> Ratio:
        """Compare this library with another, within each round of each process."""
        # The rounds of a process have its memory layout in common, so that what they
        # agree on is less sure than it looks. Processes have nothing in common.
        of_processes = [
            median(
                mine / theirs
                for mine, theirs in zip(ours.values, others.values, strict=True)
            )
            for ours, others in zip(
                self.benchmark(row, OURS).get_runs(),
                self.benchmark(row, other).get_runs(),
                strict=True,
            )
        ]
        middle = median(of_processes)
        low: float
        high: float
        low, high = quantile_test(of_processes, p=0.5).confidence_interval(0.95)
        return Ratio(middle, low, high)


def markdown(results: Results) -> str:
    """Return the page."""
    parts = [
        INTRODUCTION,
        _machine(results),
        "```{image} benchmarks.svg\n:alt: Ratios to the floor, and how cost grows\n```",
        "## Beside the alternatives",
        _comparison(results),
        SAME_WAY,
        "## What we want to see",
        _goals(results),
        INTERVALS,
        REASONS,
        "## How cost grows",
        "Time for each use, by all threads together, with more of everything else:",
        *(_growth(results, line) for line in LINES),
    ]
    return "\n".join(part.rstrip() + "\n" for part in parts)


def _machine(results: Results) -> str:
    of_run = results.benchmark(rows.CALL, OURS)
    about = of_run.get_metadata()
    loads = [float(run.get_metadata()["load_avg_1min"]) for run in of_run.get_runs()]
    versions = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
    return (
        f"Measured with Python {about['python_version']} and {versions}, on "
        f"{about['platform']}, {about['cpu_count']} processors "
        f"({about['cpu_model_name']}). "
        f"PostgreSQL and SQLite run on the same machine. Load average, this run's own "
        f"process included: {', '.join(format(load, '.1f') for load in loads)}. "
        f"{len(of_run.get_values())} rounds in {len(loads)} processes.\n"
    )


def _table(header: list[str], lines: list[list[str]]) -> str:
    ruler = ["---", *("--:" for _ in header[1:])]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (header, ruler, *lines))


def _comparison(results: Results) -> str:
    header = [
        "",
        f"**{OURS}**",
        *PEERS,
        FLOOR,
        "to the best peer",
        "to the best by context",
        "to the floor",
    ]
    lines = []
    for row in ROWS:
        best = results.best_peer(row)
        cells = [row]
        for contestant in (OURS, *PEERS, FLOOR):
            cell = "n/a"
            if results.has(row, contestant):
                cell = _amount(row, results.benchmark(row, contestant).median())
            cells.append(f"**{cell}**" if contestant in (OURS, best) else cell)
        by_context = results.best_peer(row, BY_CONTEXT)
        cells += [
            format(results.ratio(row, other).value, ".2f")
            for other in (best, by_context, FLOOR)
        ]
        lines.append(cells)
    return _table(header, lines)


def _amount(row: str, value: float) -> str:
    if row == rows.MEMORY:
        return f"{value:.0f} B"
    for unit, scale in (("ns", 1e9), ("µs", 1e6)):
        if value * scale < 1000:
            return f"{value * scale:.3g} {unit}"
    return f"{value * 1e3:.3g} ms"


def _goals(results: Results) -> str:
    lines: list[list[str]] = []

    def goal(text: str, row: str, other: str, most: float) -> None:
        ratio = results.ratio(row, other)
        shown = f"{ratio.value:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"
        lines.append([text, shown, f"{most:.2f}", ratio.at_most(most)])

    for row in ROWS:
        best = results.best_peer(row)
        goal(f"{row}: no slower than the best peer, {best}", row, best, 1)
    goal(
        "`current_session.x` no slower than Flask-SQLAlchemy's `db.session.x`",
        rows.CURRENT_ATTRIBUTE,
        "Flask-SQLAlchemy",
        1,
    )
    goal(
        "an untouched context no slower than an empty teardown hook",
        rows.UNTOUCHED,
        EMPTY_HOOK,
        1,
    )
    for row in (rows.SQLITE, rows.POSTGRESQL):
        goal(f"{row}: within 5 % of the floor", row, FLOOR, 1.05)
    return _table(["", "ratio", "at most", "met"], lines)


def _growth(results: Results, line: str) -> str:
    lines = []
    for curve in CURVES:
        points = _points(results, curve.name, curve.sizes, line)
        lines.append(
            [
                curve.title,
                ", ".join(f"{size}: {_amount(line, value)}" for size, value in points),
                f"{points[-1][1] / points[0][1]:.2f}",
            ]
        )
    return _table([line, "median at each size", "last to first"], lines)


def _points(
    results: Results,
    label: Callable[[int, str], str],
    sizes: tuple[int, ...],
    line: str,
) -> list[tuple[int, float]]:
    measured = set(results.suite.get_benchmark_names())
    return [
        (size, results.suite.get_benchmark(label(size, line)).median())
        for size in sizes
        if label(size, line) in measured
    ]


def draw(results: Results, path: Path) -> None:
    """Draw the chart."""
    # Text as text, and the same file for the same results.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "benchmarks"}):
        figure = Figure(figsize=(11, 9.5), layout="constrained")
        upper, lower = figure.subfigures(2, 1, squeeze=False, height_ratios=(3, 2))[
            :, 0
        ]
        _draw_ratios(results, upper.subplots())
        for axes, curve in zip(
            lower.subplots(1, len(CURVES), sharey=True), CURVES, strict=True
        ):
            for line in LINES:
                points = _points(results, curve.name, curve.sizes, line)
                axes.plot(
                    [size for size, _ in points],
                    [value * 1e6 for _, value in points],
                    marker="o",
                    label=line.replace("`", ""),
                )
            axes.set_xscale("log")
            axes.set_yscale("log")
            axes.set_xlabel(curve.title)
            axes.grid(alpha=0.3)
        lower.axes[0].set_ylabel("µs for each use")
        lower.axes[0].legend(loc="center left", fontsize="small")
        figure.savefig(path, metadata={"Date": None})


def _draw_ratios(results: Results, axes: Axes) -> None:
    for contestant in (*PEERS, OURS):
        places = [i for i, row in enumerate(ROWS) if results.has(row, contestant)]
        floor = [results.benchmark(ROWS[i], FLOOR).median() for i in places]
        cost = [results.benchmark(ROWS[i], contestant).median() for i in places]
        ours = contestant == OURS
        axes.scatter(
            [mine / least for mine, least in zip(cost, floor, strict=True)],
            places,
            s=90 if ours else 35,
            marker="D" if ours else "o",
            label=contestant,
            zorder=3 if ours else 2,
        )
    axes.axvline(1, color="black", linewidth=1, label=FLOOR)
    axes.set_xscale("log")
    axes.set_xlabel(f"cost as a multiple of {FLOOR}")
    axes.set_yticks(range(len(ROWS)), [row.replace("`", "") for row in ROWS])
    axes.invert_yaxis()
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
