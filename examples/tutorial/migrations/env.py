"""Runs the migrations on the application's database."""

from alembic import context

from bookshelf import create_app
from bookshelf.database import engine
from bookshelf.models import Base

with create_app().app_context(), engine().connect() as connection:
    context.configure(connection=connection, target_metadata=Base.metadata)
    with context.begin_transaction():
        context.run_migrations()
