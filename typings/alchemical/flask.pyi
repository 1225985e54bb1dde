# Alchemical has no types. This holds what the benchmarks use of it, and can go when it
# has.

from flask import Flask
from sqlalchemy.orm import DeclarativeBase, Session

class Model(DeclarativeBase): ...

class Alchemical:
    def __init__(self, app: Flask) -> None: ...
    @property
    def session(self) -> Session: ...
