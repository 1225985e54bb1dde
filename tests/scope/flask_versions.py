"""What Flask 3.2 does otherwise, and the mark of the tests that tell."""

from __future__ import annotations

import inspect
from importlib.metadata import version

import pytest
from flask import Flask

FLASK_3_2 = tuple(map(int, version("flask").split(".")[:2])) >= (3, 2)

# Its main branch has had it since before the version was decided.
REFUSES_A_FOREIGN_POP = FLASK_3_2
assert ("ctx" in inspect.signature(Flask.do_teardown_appcontext).parameters) is (
    FLASK_3_2
)


def flask_3_2(reason: str) -> pytest.MarkDecorator:
    """Run a test from Flask 3.2 on only, for the reason that only it does so."""
    return pytest.mark.skipif(not FLASK_3_2, reason=f"from Flask 3.2 on {reason}")


def before_flask_3_2(reason: str) -> pytest.MarkDecorator:
    """Run a test before Flask 3.2 only, for the reason that it no longer does so."""
    return pytest.mark.skipif(FLASK_3_2, reason=f"from Flask 3.2 on {reason}")
