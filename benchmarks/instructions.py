"""Count the instructions of the hot paths, and compare them with the stored counts.

`python -m benchmarks.instructions` runs them under valgrind's callgrind, whose counts
are the same however busy the machine is, and fails when one has grown by more than the
tolerance. `--write` stores the counts. Those of another Python, Flask or SQLAlchemy are
shown, and fail nothing.
"""

from __future__ import annotations

import gc
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from flask import Flask
from sqlalchemy import create_engine
from sqlalchemy.orm import sessionmaker

from flask_sqlalchemy_session import FlaskScopedSession, current_session

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


def run_hot_paths() -> None:
    """Run them, with a call of `getpriority` before and after each.

    Callgrind is told to write and reset its counts there. Nothing else calls it.
    """
    app, bare = Flask("app"), Flask("bare")
    session = FlaskScopedSession(sessionmaker(create_engine("sqlite://")), app)
    names: dict[str, Any] = {
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
            names["run"](range(1000))  # until the interpreter has specialised it
            gc.collect()
            gc.disable()
            os.getpriority(os.PRIO_PROCESS, 0)
            names["run"](range(REPETITIONS))
            os.getpriority(os.PRIO_PROCESS, 0)
            gc.enable()


def count() -> dict[str, int]:
    """Return the instructions that each hot path takes."""
    source = "from benchmarks.instructions import run_hot_paths; run_hot_paths()"
    with TemporaryDirectory() as directory:
        command = ["valgrind", "--tool=callgrind", "--dump-before=getpriority"]
        command += [f"--callgrind-out-file={directory}/out"]
        command += [sys.executable, "-c", source]
        environment = {**os.environ, "PYTHONHASHSEED": "0"}
        subprocess.run(command, check=True, capture_output=True, env=environment)  # noqa: S603  # our own program
        # What comes before the first loop, and between two, is not asked for.
        numbers = range(2, 2 * len(HOT_PATHS) + 3, 2)
        dumps = [Path(directory, f"out.{number}").read_text() for number in numbers]
    totals = re.findall(r"^totals: (\d+)", "\n".join(dumps), re.MULTILINE)
    loop, *others = map(int, totals)
    counts = ((total - loop) // REPETITIONS for total in others)
    return dict(zip(HOT_PATHS, counts, strict=True))


def main() -> int:
    """Run the command.

    :return: 1 when a hot path has grown, otherwise 0.
    """
    if shutil.which("valgrind") is None:
        print("Skipped: valgrind is not installed.")  # noqa: T201  # a command's output
        return 0
    build = [f"Python {platform.python_version()} ({platform.python_compiler()})"]
    key = ", ".join(build + [f"{name} {version(name)}" for name in PACKAGES])
    stored = json.loads(STORED.read_text())
    counts = count()
    grown = 0
    for name, now in counts.items():
        before = stored.get(key, {}).get(name, now)
        grown |= now > before * (1 + TOLERANCE)
        print(f"{name:40} {now:8} {now / before - 1:+.1%}")  # noqa: T201  # as above
    if "--write" in sys.argv:
        STORED.write_text(json.dumps({**stored, key: counts}, indent=2) + "\n")
        return 0
    return grown


if __name__ == "__main__":
    sys.exit(main())
