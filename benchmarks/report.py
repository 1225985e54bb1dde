"""What is shown of the measurements: tables in Markdown, and one small chart."""

from __future__ import annotations

from importlib.metadata import version
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

from .contestants import BY_HAND, BY_THREAD, EMPTY_HOOK, OURS
from .measure import (
    CURRENT,
    CURVES,
    GROWN,
    MEMORY,
    POSTGRESQL,
    PROXY,
    ROWS,
    SQLITE,
    UNTOUCHED,
    name,
)

if TYPE_CHECKING:
    from pyperf import BenchmarkSuite

PEERS = [
    *("Flask-SQLAlchemy", "Flask-SQLAlchemy-Lite"),
    *("Advanced Alchemy", "Alchemical", "svcs"),
]
FLOORS = [BY_THREAD, BY_HAND]
PACKAGES = ["flask", "werkzeug", "sqlalchemy", "psycopg"]
PEER_PACKAGES = [peer.lower().replace(" ", "-") for peer in PEERS]


class Ratio(NamedTuple):
    """How much more this library costs than another, and how the processes differ."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} ({self.low:.2f} to {self.high:.2f})"


class Results:
    """The measurements of one interpreter."""

    def __init__(self, suite: BenchmarkSuite) -> None:
        self.suite = suite
        self._names = set(suite.get_benchmark_names())

    @property
    def python(self) -> str:
        return str(self.suite.get_metadata()["python_version"])

    def median(self, row: str, contestant: str) -> float | None:
        row = self._row(row, contestant)
        if name(row, contestant) not in self._names:
            return None
        return self.suite.get_benchmark(name(row, contestant)).median()

    def best_peer(self, row: str) -> str:
        costs = {peer: self.median(row, peer) for peer in PEERS}
        return min(PEERS, key=lambda peer: costs[peer] or float("inf"))

    def ratio(self, row: str, other: str) -> Ratio:
        """Compare this library with another, within each round of each process."""
        ours = self.suite.get_benchmark(name(row, OURS)).get_runs()
        theirs = self.suite.get_benchmark(name(self._row(row, other), other)).get_runs()
        of_processes = [
            median(mine / its for mine, its in zip(a.values, b.values, strict=True))
            for a, b in zip(ours, theirs, strict=True)
        ]
        return Ratio(median(of_processes), min(of_processes), max(of_processes))

    @staticmethod
    def _row(row: str, contestant: str) -> str:
        """A peer has one way to its session, which stands beside each of ours."""
        return CURRENT if row == PROXY and contestant != OURS else row


def page(results: list[Results]) -> str:
    """Return what a run has measured. The first interpreter is the one shown whole."""
    main = results[0]
    parts = [
        _machine(main),
        "## Beside the alternatives\n",
        _comparison(main),
        "## What we want to see\n",
        _goals(main),
        "## On each interpreter\n\nRatios to the best peer by context there.\n",
        _interpreters(results),
        "## How cost grows\n\nTime for each use, by all threads together.\n",
        *(_growth(main, row) for row in GROWN),
    ]
    return "\n".join(parts)


def _machine(results: Results) -> str:
    ours = results.suite.get_benchmark(name(ROWS[0], OURS))
    about = ours.get_metadata()
    loads = [f"{run.get_metadata()['load_avg_1min']:.1f}" for run in ours.get_runs()]
    versions = ", ".join(
        f"{package} {version(package)}" for package in PACKAGES + PEER_PACKAGES
    )
    return (
        f"Measured with Python {results.python}, {versions}, on "
        f"{about['platform']}, {about['cpu_count']} processors "
        f"({about['cpu_model_name']}), in {len(loads)} process(es) of "
        f"{len(ours.get_values()) // len(loads)} rounds, at a load average of "
        f"{', '.join(loads)}.\n"
    )


def _table(header: list[str], lines: list[list[str]]) -> str:
    ruler = ["---", *("--:" for _ in header[1:])]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (header, ruler, *lines))


def _comparison(results: Results) -> str:
    """Return two tables, each narrow enough for a page: the peers, and the floors."""
    peers, floors = [], []
    for row in ROWS:
        best = results.best_peer(row)
        cells = {
            contestant: _amount(row, results.median(row, contestant))
            for contestant in (OURS, *PEERS, *FLOORS)
        }
        for contestant in (OURS, best):
            cells[contestant] = f"**{cells[contestant]}**"
        ratio = f"{results.ratio(row, best).value:.2f}"
        peers.append([row, *(cells[each] for each in (OURS, *PEERS)), ratio])
        floors.append([row, *(cells[each] for each in (OURS, *FLOORS))])
    return "\n".join(
        [
            _table(["what", OURS, *PEERS, "to the best"], peers),
            "The floors, of which neither looks for the current context:\n",
            _table(["what", OURS, *FLOORS], floors),
        ]
    )


def _amount(row: str, value: float | None) -> str:
    if value is None:
        return "n/a"
    if row == MEMORY:
        return f"{value:.0f} B"
    for unit, scale in (("ns", 1e9), ("µs", 1e6)):
        if value * scale < 1000:
            return f"{value * scale:.3g} {unit}"
    return f"{value * 1e3:.3g} ms"


def _goals(results: Results) -> str:
    goals = [(row, results.best_peer(row)) for row in ROWS]
    goals += [(UNTOUCHED, EMPTY_HOOK)]
    lines = []
    for row, other in goals:
        ratio = results.ratio(row, other)
        met = "yes" if ratio.high <= 1 else "no" if ratio.low > 1 else "within noise"
        lines.append([f"{row}, to {other}", str(ratio), met])
    return _table(["what", "ratio", "at most 1"], lines)


def _interpreters(results: list[Results]) -> str:
    header = ["what", *(one.python.partition(" ")[0] for one in results)]
    lines = [
        [row, *(f"{one.ratio(row, one.best_peer(row)).value:.2f}" for one in results)]
        for row in ROWS
    ]
    return _table(header, lines)


def _growth(results: Results, row: str) -> str:
    lines = []
    for curve, sizes in CURVES.items():
        costs = [
            results.suite.get_benchmark(f"{row} | {size} {curve}").median()
            for size in sizes
        ]
        amounts = (
            f"{size}: {_amount(row, cost)}"
            for size, cost in zip(sizes, costs, strict=True)
        )
        lines.append([curve, ", ".join(amounts), f"{costs[-1] / costs[0]:.2f}"])
    return _table([row, "median at each size", "last to first"], lines)


def chart(results: Results) -> str:
    """Draw what a request costs with each contestant, the least first, as SVG."""
    left, scale, height = 195, 180, 22
    parts: list[str] = []
    y = 20
    for row in (POSTGRESQL, SQLITE):
        costs = {
            contestant: results.median(row, contestant) or 0
            for contestant in (OURS, *PEERS, *FLOORS)
        }
        most = max(costs.values())
        parts.append(f'<text class="head" x="0" y="{y}">{row}</text>')
        for contestant, cost in sorted(costs.items(), key=lambda item: item[1]):
            y += height
            width = round(cost / most * scale)
            colour = "session" if contestant == OURS else "other"
            parts.append(
                f'<text x="{left - 8}" y="{y}" text-anchor="end">{contestant}</text>'
                f'<rect class="{colour}" x="{left}" y="{y - 12}" width="{width}" '
                f'height="15"/><text x="{left + width + 6}" y="{y}">'
                f"{_amount(row, cost)}</text>"
            )
        y += 2 * height
    return (
        f'<svg class="figure narrow" xmlns="http://www.w3.org/2000/svg" '
        f'viewBox="0 0 440 {y - height}" role="img" aria-labelledby="costs-title" '
        'font-family="system-ui, sans-serif" font-size="14">\n'
        '<title id="costs-title">What a request costs with each library</title>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )
