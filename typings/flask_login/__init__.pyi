# Flask-Login has no annotations. This can go when it has, or when a stub
# distribution has.

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from flask import Flask

_P = ParamSpec("_P")
_R = TypeVar("_R")
_T = TypeVar("_T", bound=Callable[[str], object])

class UserMixin:
    @property
    def is_authenticated(self) -> bool: ...

class LoginManager:
    def __init__(self, app: Flask) -> None: ...
    def user_loader(self, callback: _T) -> _T: ...

# Of whatever class the application's user is.
current_user: Any

def login_required(func: Callable[_P, _R]) -> Callable[_P, _R]: ...
def login_user(user: object) -> bool: ...
def logout_user() -> bool: ...
