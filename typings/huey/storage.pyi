# See __init__.pyi.

class BaseStorage:
    def close(self) -> bool: ...
