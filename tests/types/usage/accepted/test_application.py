"""An application as a user writes it, in one module."""

from __future__ import annotations

from flask import Blueprint, Flask, abort
from flask.typing import ResponseReturnValue
from sqlalchemy import Engine, func, select
from sqlalchemy.exc import NoResultFound
from sqlalchemy.orm import Session, sessionmaker
from typing_extensions import assert_type

from flask_sqlalchemy_session import FlaskScopedSession, current_session
from tests.support import User
from tests.types.usage import ShopSession, check

factory = sessionmaker(class_=ShopSession)
db = FlaskScopedSession(factory)
shop = db.proxy

users = Blueprint("users", __name__)


@users.get("/<int:user_id>")
def show(user_id: int) -> dict[str, str]:
    user = current_session.get_one(User, user_id)
    check(assert_type(user.name, str), str)
    return {"name": user.name}


@users.post("/<name>")
def create(name: str) -> tuple[dict[str, int], int]:
    user = User(name=name)
    with current_session.begin():
        current_session.add(user)
    check(assert_type(user.id, int), int)
    return {"id": user.id, "count": shop.count_users()}, 201


@users.get("/named/<name>")
def named(name: str) -> dict[str, int]:
    user = db.scalar(select(User).filter_by(name=name))
    if user is None:
        abort(404)
    check(assert_type(user, User), User)
    return {"id": user.id}


@users.app_errorhandler(NoResultFound)
def not_found(error: NoResultFound) -> ResponseReturnValue:
    return {"error": str(error)}, 404


def count(session: Session) -> int:
    """Stands for code that knows nothing of Flask."""
    return session.scalars(select(func.count(User.id))).one()


def create_app(engine: Engine) -> Flask:
    app = Flask("users")
    factory.configure(bind=engine)
    db.init_app(app)
    app.register_blueprint(users)
    return app


def test_the_application(engine: Engine) -> None:
    app = create_app(engine)
    client = app.test_client()
    assert client.get("/1").json == {"name": "ann"}
    assert client.get("/9").status_code == 404
    assert client.post("/bob").json == {"id": 2, "count": 2}
    assert client.get("/named/bob").json == {"id": 2}
    assert client.get("/named/eve").status_code == 404
    with app.app_context():
        check(assert_type(db, FlaskScopedSession[ShopSession]), FlaskScopedSession)
        check(assert_type(shop, ShopSession), ShopSession)
        check(assert_type(count(current_session), int), int)
        check(assert_type(count(shop), int), int)
