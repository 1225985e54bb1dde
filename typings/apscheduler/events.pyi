# See __init__.pyi.

EVENT_JOB_ERROR: int
EVENT_JOB_EXECUTED: int

class JobExecutionEvent:
    exception: BaseException | None
