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
            names["run"](range(100))  # until the interpreter has specialised it
            gc.collect()
            gc.disable()
            os.getpriority(os.PRIO_PROCESS, 0)
            names["run"](range(REPETITIONS))
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
        # What comes before the first loop, and between two, is not asked for.
        dumps = [
            Path(directory, f"out.{number}").read_text()
            for number in range(2, 2 * len(HOT_PATHS) + 3, 2)
        ]
    totals = re.findall(r"^totals: (\d+)", "\n".join(dumps), re.MULTILINE)
    loop, *others = map(int, totals)
    return {
        name: (total - loop) // REPETITIONS
        for name, total in zip(HOT_PATHS, others, strict=True)
    }


def _versions() -> dict[str, str]:
    """Name what the counts depend on."""
    options = str(sysconfig.get_config_var("CONFIG_ARGS"))
    optimised = "optimised" if "--enable-optimizations" in options else "not optimised"
    build = (platform.python_version(), platform.machine(), platform.python_compiler())
    versions = {package: version(package) for package in PACKAGES}
    return {"python": ", ".join([*build, optimised]), **versions}


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
    all_stored = json.loads(STORED.read_text())
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    stored = all_stored.get(python, {"instructions": {}, "versions": {}})
    counts, versions = count(), _versions()
    grown = False
    for name, now in counts.items():
        before = stored["instructions"].get(name, now)
        grown = grown or now > before * (1 + TOLERANCE)
        print(f"{name:40} {now:8} {now / before - 1:+.1%}")  # noqa: T201  # as above
    if arguments.write:
        all_stored[python] = {"instructions": counts, "versions": versions}
        STORED.write_text(json.dumps(all_stored, indent=2, sort_keys=True) + "\n")
    elif stored["versions"] != versions:
        print(f"Stored with {stored['versions']}, this is {versions}.")  # noqa: T201  # as above
    else:
        return int(grown)
    return 0


if __name__ == "__main__":
    sys.exit(main())
