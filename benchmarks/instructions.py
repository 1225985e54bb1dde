"""Count the instructions of the hot paths, and compare them with the stored counts.

`python -m benchmarks.instructions` runs them under valgrind's callgrind, whose counts
are the same however busy the machine is, and fails when one has grown by more than the
tolerance. `--write` stores the counts for this Python version instead. Another build of
Python, or another release of Flask or SQLAlchemy, counts differently: there the
comparison is shown, and nothing fails.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypedDict

STORED = Path(__file__).with_name("instructions.json")
TOLERANCE = 0.05
REPETITIONS = 500
PACKAGES = ("flask", "werkzeug", "sqlalchemy")

HOT_PATHS = {
    "session()": "session()",
    "session.is_active": "session.is_active",
    "current_session.is_active": "current_session.is_active",
    "session.proxy.is_active": "proxy.is_active",
    "a context that uses its session once": "with app.app_context(): session()",
    "a context that never does": "with app.app_context(): pass",
    "the same of Flask alone": "with bare.app_context(): pass",
}


class Counts(TypedDict):
    """What is stored for one Python version."""

    versions: dict[str, str]
    instructions: dict[str, int]


def run_hot_paths() -> None:
    """Run them, with a call of `getpriority` before and after each.

    Callgrind is told to write and reset its counts there. Nothing else calls it.
    """
    from flask import Flask  # noqa: PLC0415  # under valgrind each import takes seconds
    from sqlalchemy import create_engine  # noqa: PLC0415
    from sqlalchemy.orm import sessionmaker  # noqa: PLC0415

    from flask_sqlalchemy_session import (  # noqa: PLC0415
        FlaskScopedSession,
        current_session,
    )

    app, bare = Flask("app"), Flask("bare")
    session = FlaskScopedSession(sessionmaker(create_engine("sqlite://")), app)
    names = {
        "app": app,
        "bare": bare,
        "session": session,
        "current_session": current_session,
        "proxy": session.proxy,
    }
    with app.app_context():
        for source in ("pass", *HOT_PATHS.values()):
            loop = f"def run(repetitions):\n for _ in repetitions:\n  {source}\n"
            exec(loop, names)  # noqa: S102  # the sources above
            run = names["run"]
            assert callable(run)
            run(range(100))  # until the interpreter has specialised it
            gc.collect()
            gc.disable()
            os.getpriority(os.PRIO_PROCESS, 0)
            run(range(REPETITIONS))
            os.getpriority(os.PRIO_PROCESS, 0)
            gc.enable()


def count() -> dict[str, int]:
    """Return the instructions that each hot path takes."""
    with TemporaryDirectory() as directory:
        subprocess.run(  # noqa: S603  # our own program
            [
                *("valgrind", "--tool=callgrind", "--dump-before=getpriority"),
                f"--callgrind-out-file={directory}/out",
                *(sys.executable, "-m", "benchmarks.instructions", "--inside"),
            ],
            check=True,
            capture_output=True,
            env={**os.environ, "PYTHONHASHSEED": "0"},
        )
        totals = [
            _total(Path(directory, f"out.{number}"))
            for number in range(2, 2 * len(HOT_PATHS) + 3, 2)
        ]
    loop = totals[0]
    return {
        name: (total - loop) // REPETITIONS
        for name, total in zip(HOT_PATHS, totals[1:], strict=True)
    }


def _total(file: Path) -> int:
    found = re.search(r"^totals: (\d+)", file.read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1])


def main() -> int:
    """Run the command.

    :return: 1 when a hot path has grown, otherwise 0.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="store the counts")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inside:
        run_hot_paths()
        return 0
    if shutil.which("valgrind") is None:
        print("Skipped: valgrind is not installed.")  # noqa: T201  # a command's output
        return 0
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    stored: dict[str, Counts] = (
        json.loads(STORED.read_text()) if STORED.exists() else {}
    )
    counts = Counts(
        versions={
            "python": _build(),
            **{package: version(package) for package in PACKAGES},
        },
        instructions=count(),
    )
    before = stored.get(python)
    grown = _compare(counts, before)
    if arguments.write:
        stored[python] = counts
        text = json.dumps(stored, indent=2, sort_keys=True) + "\n"
        STORED.write_text(text)
        return 0
    if before is None:
        print(f"Nothing is stored for Python {python}: use --write.")  # noqa: T201  # a command's output
    return 1 if grown else 0


def _build() -> str:
    """Name what an interpreter's instructions depend on."""
    options = str(sysconfig.get_config_var("CONFIG_ARGS"))
    optimised = "optimised" if "--enable-optimizations" in options else "not optimised"
    return (
        f"{platform.python_version()}, {platform.machine()}, "
        f"{platform.python_compiler()}, {optimised}"
    )


def _compare(counts: Counts, before: Counts | None) -> bool:
    """Show the counts beside those before, and tell whether one has grown."""
    grown = False
    for name, now in counts["instructions"].items():
        old = before["instructions"].get(name) if before else None
        change = "new" if old is None else f"{now / old - 1:+.1%}"
        print(f"{name:40} {now:8} {change}")  # noqa: T201  # a command's output
        grown = grown or (old is not None and now > old * (1 + TOLERANCE))
    if before and before["versions"] != counts["versions"]:
        print(f"Stored with {before['versions']}, this is {counts['versions']}.")  # noqa: T201  # a command's output
        return False
    return grown


if __name__ == "__main__":
    sys.exit(main())
