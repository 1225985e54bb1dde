"""Promise 4: a forked child never ends its parent's transaction."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest

from tests.support import SET_UP, many_connections, run_script

if TYPE_CHECKING:
    from sqlalchemy import Engine

pytestmark = pytest.mark.skipif(
    not hasattr(os, "fork"), reason="this system does not fork"
)

# A process of its own, whose children can exit as processes do. Each child inherits
# a context whose session has written a row; the parent then commits that row.
SCRIPT = (
    SET_UP
    + """
import contextvars, gc, json, os, threading


def write(name):
    session.add(User(name=name))
    session.flush()


def fork(child):
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        child()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def in_a_context(name, child):
    with app.app_context() as context:
        write(name)
        code = fork(lambda: child(context))
        session.commit()
    return code


def unwinds(context):
    context.pop()


def removes(context):
    session.remove()


def exits(context):
    sys.exit(0)


def exits_at_once(context):
    os._exit(0)


def uses_the_session(context):
    engine.dispose(close=False)
    assert not session.in_transaction()
    assert session.scalar(text("SELECT 1")) == 1
    assert engine.pool.checkedout() == 1
    sys.exit(0)  # which leaves the `with` of the context


def drops(name):
    variables = contextvars.Context()

    def push():
        app.app_context().push()
        write(name)

    def drop():
        nonlocal variables
        variables = None
        gc.collect()
        sys.exit(0)

    variables.run(push)
    code = fork(drop)
    variables.run(session.commit)
    variables.run(session.remove)
    return code


def another_threads(name):
    written, forked = threading.Event(), threading.Event()

    def work():
        with app.app_context():
            write(name)
            written.set()
            forked.wait()
            session.commit()

    thread = threading.Thread(target=work)
    thread.start()
    written.wait()
    code = fork(lambda: (gc.collect(), sys.exit(0)))
    forked.set()
    thread.join()
    return code


def ends_with_its_thread(name):
    # In the child Python drops what other threads have, before any hook.
    kept = threading.local()
    written, forked = threading.Event(), threading.Event()

    def rows():
        with app.app_context():
            write(name)
            yield
            session.commit()
            yield

    def work():
        kept.rows = rows()
        next(kept.rows)
        written.set()
        forked.wait()
        next(kept.rows)
        kept.rows.close()

    thread = threading.Thread(target=work)
    thread.start()
    written.wait()
    sys.unraisablehook = lambda _: None  # Flask's error: it is not the current context
    code = fork(lambda: None)
    sys.unraisablehook = sys.__unraisablehook__
    forked.set()
    thread.join()
    return code


codes = {
    child.__name__: in_a_context(child.__name__, child)
    for child in (unwinds, removes, exits, exits_at_once, uses_the_session)
}
codes["drops"] = drops("drops")
codes["another_threads"] = another_threads("another_threads")
codes["ends_with_its_thread"] = ends_with_its_thread("ends_with_its_thread")
with Session(engine) as after:
    print(json.dumps({"codes": codes, "rows": after.scalars(select(User.name)).all()}))
"""
)


# What runs in the child before the library's own hook: that of another library, which
# was registered earlier. The last of the parent's hooks, in turn, is the earliest.
EARLIER_HOOKS = (
    """
import gc, json, multiprocessing, os, subprocess, threading

last_in_parent, first_in_child = [], []
os.register_at_fork(
    before=lambda: [each() for each in last_in_parent],
    after_in_child=lambda: [each() for each in first_in_child],
)
"""
    + SET_UP
    + """


def os_fork():
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def multiprocessing_fork():
    process = multiprocessing.get_context("fork").Process(target=int)
    process.start()
    process.join()
    return process.exitcode


def preexec_fn():
    return subprocess.run(["true"], preexec_fn=int).returncode


def collects(name, fork):
    # Of another thread, whose context variables the child has no more.
    written, forked = threading.Event(), threading.Event()

    def work():
        app.app_context().push()
        session.add(User(name=name))
        session.flush()
        written.set()
        forked.wait()
        session.commit()
        session.remove()

    thread = threading.Thread(target=work)
    thread.start()
    written.wait()
    first_in_child.append(gc.collect)
    code = fork()
    first_in_child.clear()
    forked.set()
    thread.join()
    return code


def drops(name, fork):
    # What is opened after the library's own hook, as by a thread at that moment.
    context = app.app_context()

    def open_late():
        context.push()
        session.add(User(name=name))
        session.flush()

    last_in_parent.append(open_late)
    first_in_child.append(vars(context).clear)  # with what holds the session
    code = fork()
    last_in_parent.clear()
    first_in_child.clear()
    session.commit()
    context.pop()
    return code


codes = {
    f"{fork.__name__} {what.__name__}": what(f"{fork.__name__} {what.__name__}", fork)
    for fork in (os_fork, multiprocessing_fork, preexec_fn)
    for what in (collects, drops)
}
with Session(engine) as after:
    print(json.dumps({"codes": codes, "rows": after.scalars(select(User.name)).all()}))
"""
)


def check(script: str, engine: Engine) -> None:
    result = json.loads(run_script(script, engine))
    assert set(result["codes"].values()) == {0}, result["codes"]
    assert result["rows"] == list(result["codes"])


@many_connections
def test_a_forked_child_leaves_its_parents_transaction_alone(engine: Engine) -> None:
    check(SCRIPT, engine)


@many_connections
def test_a_collection_in_the_child_before_the_librarys_hook_ends_no_transaction(
    engine: Engine,
) -> None:
    check(EARLIER_HOOKS, engine)
