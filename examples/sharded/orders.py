"""The views."""

from __future__ import annotations

from flask import Blueprint, abort, current_app, request
from sqlalchemy import select
from sqlalchemy.ext.horizontal_shard import set_shard_id

from .models import Order
from .sessions import current_session

orders = Blueprint("orders", __name__, url_prefix="/orders")


@orders.put("/<region>/<int:number>")
def put(region: str, number: int) -> tuple[dict[str, str | int], int]:
    if region not in current_app.extensions["shards"]:
        abort(404)
    with current_session.begin():
        order = Order(region=region, number=number, item=request.form["item"])
        order = current_session.merge(order)
    return as_json(order), 201


@orders.get("/<region>/<int:number>")
def get(region: str, number: int) -> dict[str, str | int]:
    order = current_session.get(Order, (region, number))
    if order is None:
        abort(404)
    return as_json(order)


@orders.get("/")
def list_everywhere() -> list[dict[str, str | int]]:
    found = current_session.scalars(select(Order)).all()
    return [as_json(order) for order in found]


@orders.get("/<region>/")
def list_region(region: str) -> list[dict[str, str | int]]:
    if region not in current_app.extensions["shards"]:
        abort(404)
    only_there = select(Order).options(set_shard_id(region))
    found = current_session.scalars(only_there).all()
    return [as_json(order) for order in found]


def as_json(order: Order) -> dict[str, str | int]:
    return {"region": order.region, "number": order.number, "item": order.item}
