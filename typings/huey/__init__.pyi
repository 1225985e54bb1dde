# Huey has no annotations. This can go when it has, or when a stub
# distribution has.

from collections.abc import Callable
from typing import ParamSpec

from .api import Result
from .consumer import Consumer
from .storage import BaseStorage

_P = ParamSpec("_P")

class Huey:
    storage: BaseStorage
    def __init__(self, *, immediate: bool = ...) -> None: ...
    def task(self) -> Callable[[Callable[_P, object]], Callable[_P, Result]]: ...
    def create_consumer(
        self,
        *,
        workers: int,
        periodic: bool,
        initial_delay: float,
        max_delay: float,
    ) -> Consumer: ...

class MemoryHuey(Huey): ...

class SqliteHuey(Huey):
    def __init__(self, *, filename: str) -> None: ...
