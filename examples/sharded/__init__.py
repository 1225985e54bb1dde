"""The orders application: one table, over a database for each region.

A commit ends one transaction on each database that was written to, one after the
other: what must be kept or lost together belongs in one shard.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from flask import Flask

from .orders import orders
from .sessions import session

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import Engine


def create_app(shards: Mapping[str, Engine]) -> Flask:
    """Make the application.

    :param shards: for each region, the engine of a database that has the table.
    """
    app = Flask(__name__)
    app.extensions["shards"] = dict(shards)
    session.init_app(app)
    app.register_blueprint(orders)
    return app
