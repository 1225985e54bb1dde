"""An application whose view is in a transaction when its server is told to stop."""

from __future__ import annotations

import os
import signal
import time

from flask import Flask
from sqlalchemy import create_engine, text
from sqlalchemy.orm import sessionmaker

from flask_sqlalchemy_session import FlaskScopedSession, current_session
from tests.support import User

app = Flask(__name__)
engine = create_engine(
    os.environ["DATABASE_URL"], connect_args={"application_name": "shutting down"}
)
FlaskScopedSession(sessionmaker(engine), app)


@app.post("/users/<name>")
def add_user(name: str) -> str:
    current_session.add(User(name=name))
    current_session.flush()
    os.kill(os.getppid(), signal.SIGTERM)
    time.sleep(1)
    current_session.execute(text("SELECT 1"))
    current_session.commit()
    return name
