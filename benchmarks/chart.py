"""One small chart: what a request costs with each contestant, the least first."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .contestants import FLOORS, OURS, PEERS
from .measure import POSTGRESQL, SQLITE, amount, cell

if TYPE_CHECKING:
    from pyperf import BenchmarkSuite

LEFT, SCALE, LINE = 195, 180, 22


def chart(suite: BenchmarkSuite) -> str:
    """Draw it as SVG, with the classes of the site's other figures."""
    parts: list[str] = []
    y = 0
    for row in (POSTGRESQL, SQLITE):
        y += LINE
        parts.append(f'<text class="head" x="0" y="{y}">{row}</text>')
        benchmarks = {
            name: suite.get_benchmark(cell(row, name))
            for name in (OURS, *PEERS, *FLOORS)
            if cell(row, name) in suite.get_benchmark_names()
        }
        names = sorted(benchmarks, key=lambda name: benchmarks[name].median())
        most = benchmarks[names[-1]].median()
        for name in names:
            y += LINE
            width = round(benchmarks[name].median() / most * SCALE)
            kind = "session" if name == OURS else "other"
            parts.append(
                f'<text x="{LEFT - 8}" y="{y}" text-anchor="end">{name}</text>'
                f'<rect class="{kind}" x="{LEFT}" y="{y - 12}" width="{width}" '
                f'height="15"/><text x="{LEFT + width + 6}" y="{y}">'
                f"{amount(benchmarks[name])}</text>"
            )
        y += LINE
    return (
        '<svg class="figure narrow" xmlns="http://www.w3.org/2000/svg" '
        f'viewBox="0 0 440 {y}" role="img" aria-labelledby="costs-title" '
        'font-family="system-ui, sans-serif" font-size="14">\n'
        '<title id="costs-title">What a request costs with each library</title>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )
