# See __init__.pyi.

class TaskException(Exception): ...  # noqa: N818  # Huey's name
