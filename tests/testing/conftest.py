"""Shows with `-v`, a driver a row, how often the differential suite saw the same."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

OUTCOMES = ("same", "refused", "differing")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    counts: defaultdict[str, Counter[object]] = defaultdict(Counter)
    for reports in terminalreporter.stats.values():
        for report in reports:
            for driver, seen in getattr(report, "user_properties", ()):
                counts[driver][seen] += report.when == "call"
    if counts and terminalreporter.config.option.verbose > 0:
        for row in [
            ("driver", *OUTCOMES),
            ("---", *("---" for _ in OUTCOMES)),
            *(
                (name, *(seen[one] for one in OUTCOMES))
                for name, seen in counts.items()
            ),
        ]:
            terminalreporter.write_line(f"| {' | '.join(map(str, row))} |")
