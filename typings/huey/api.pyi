# See __init__.pyi.

class Result:
    def get(self, *, blocking: bool, timeout: float) -> object: ...
