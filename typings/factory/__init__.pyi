# factory_boy says that it is typed, but its functions have no annotations. This can go
# when strict type checkers accept what tests/works_with/test_factory_boy.py does with
# it.

from collections.abc import Callable
from typing import ClassVar

from . import alchemy as alchemy

class Sequence:
    def __init__(self, function: Callable[[int], object]) -> None: ...

class Factory:
    class Meta:
        model: ClassVar[type]

    @classmethod
    def create(cls, **kwargs: object) -> object: ...
    @classmethod
    def create_batch(cls, size: int, **kwargs: object) -> list[object]: ...
