# Flask-Admin has annotations, but no py.typed that says so. This can go when it has
# one.

from flask import Flask

from .contrib.sqla import ModelView

class Admin:
    def __init__(self, app: Flask) -> None: ...
    def add_view(self, view: ModelView) -> None: ...
