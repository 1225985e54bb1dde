# Flask-Session has annotations, but no py.typed that says so. This can go when it has
# one.

from flask import Flask

class Session:
    def __init__(self, app: Flask) -> None: ...
