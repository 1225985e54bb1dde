"""The event loop that async views share."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import threading
import traceback
import weakref
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest
from asgiref.sync import sync_to_async
from asgiref.wsgi import WsgiToAsgi
from flask import Flask, current_app, g, request
from sqlalchemy import text
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

from flask_sqlalchemy_session.asyncio import (
    FlaskAsyncScopedSession,
    current_async_session,
    use_one_event_loop,
)
from tests.scope.flask_versions import before_flask_3_2
from tests.support import Held

if TYPE_CHECKING:
    from collections.abc import Callable

    from werkzeug.exceptions import InternalServerError

Message: TypeAlias = "dict[str, object]"

tenant: ContextVar[str] = ContextVar("tenant")


@pytest.fixture
def app() -> Flask:
    app = Flask("shop")
    app.testing = True
    use_one_event_loop(app)
    return app


async def running_loop() -> asyncio.AbstractEventLoop:
    return asyncio.get_running_loop()


def in_a_process(program: str) -> str:
    """Run a program, and return what it wrote."""
    return subprocess.run(  # noqa: S603  # a program of the test's own
        [sys.executable, "-W", "error", "-c", program],
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=30,
        cwd=Path(__file__).parents[2],
    ).stdout


def test_views_of_every_application_run_on_one_loop_in_a_thread_of_its_own(
    app: Flask,
) -> None:
    other = Flask("other")
    use_one_event_loop(other)
    loops: list[asyncio.AbstractEventLoop] = []
    threads: list[int] = []

    async def view() -> str:
        loops.append(asyncio.get_running_loop())
        threads.append(threading.get_ident())
        return ""

    for each in (app, other):
        each.add_url_rule("/", view_func=view, endpoint="view")
    for each in (app, other, app):
        assert each.test_client().get("/").status_code == 200
    assert len(loops) == 3
    assert len(set(loops)) == 1
    assert set(threads) != {threading.get_ident()}
    assert len(set(threads)) == 1


def test_to_turn_it_on_again_changes_nothing(app: Flask) -> None:
    before = app.async_to_sync
    use_one_event_loop(app)
    with app.app_context():
        use_one_event_loop(current_app)
    assert app.async_to_sync is before


def test_what_flask_keeps_for_the_request_is_there(app: Flask) -> None:
    @app.before_request
    async def before() -> None:
        g.user = "ann"

    @app.get("/<name>")
    async def view(name: str) -> str:
        return f"{g.user} {request.path} {current_app.name}"

    assert app.test_client().get("/x").text == "ann /x shop"


def test_context_variables_go_in_and_what_is_set_comes_out(app: Flask) -> None:
    async def view() -> str:
        before = tenant.get()
        await asyncio.sleep(0)
        tenant.set("inside")
        return before

    tenant.set("outside")
    assert app.ensure_sync(view)() == "outside"
    assert tenant.get() == "inside"


@pytest.mark.parametrize("with_one_loop", [True, False])
def test_an_error_handler_has_the_error_at_hand(
    with_one_loop: bool, app: Flask
) -> None:
    """As without the loop, where `logging.exception` and a bare `raise` need it."""
    app = app if with_one_loop else Flask("plain")
    app.testing = False
    told: list[str] = []

    @app.get("/")
    def index() -> str:
        message = "no user"
        raise LookupError(message)

    @app.errorhandler(LookupError)
    async def on_lookup_error(error: LookupError) -> str:
        assert sys.exc_info()[1] is error
        told.append("".join(traceback.format_exception(error)))
        with pytest.raises(ValueError, match="not ours") as caught:
            raise ValueError("not ours")
        assert caught.value.__context__ is error
        raise  # noqa: PLE0704  # what is handled

    @app.errorhandler(500)
    async def on_any_error(error: InternalServerError) -> str:
        return repr(error.original_exception)

    assert app.test_client().get("/").text == "LookupError('no user')"
    assert "in index" in told[0]
    assert "_calls.py" not in told[0]


def test_a_call_from_the_loop_itself_is_refused(app: Flask) -> None:
    async def inner() -> None:
        pytest.fail("it was called")

    async def view() -> None:
        app.ensure_sync(inner)()

    with pytest.raises(RuntimeError, match=r"inner .*was called .*Await it"):
        app.ensure_sync(view)()


def test_a_thread_that_a_view_waits_for_may_call_back(app: Flask) -> None:
    loop = app.ensure_sync(running_loop)()

    def blocking() -> bool:
        return loop is app.ensure_sync(running_loop)()

    async def view() -> bool:
        return await sync_to_async(blocking)() and await asyncio.to_thread(blocking)

    assert app.ensure_sync(view)()


def test_an_exit_in_a_task_that_a_view_left_behind_does_not_end_the_loop(
    app: Flask,
) -> None:
    loop = app.ensure_sync(running_loop)()
    told: list[BaseException] = []
    loop.set_exception_handler(lambda _, told_of: told.append(told_of["exception"]))

    async def leave() -> None:
        sys.exit("now")

    async def view() -> None:
        asyncio.create_task(leave())  # noqa: RUF006  # it ends at once
        await asyncio.sleep(0)

    app.ensure_sync(view)()
    assert app.ensure_sync(running_loop)() is loop
    assert [str(error) for error in told] == ["now"]
    loop.set_exception_handler(None)


def test_an_error_is_kept_by_no_cycle(app: Flask) -> None:
    class Kept:
        pass

    gone: list[str] = []

    async def view() -> None:
        kept = Kept()
        weakref.finalize(kept, gone.append, "gone")
        raise LookupError

    gc.disable()
    try:
        with pytest.raises(LookupError) as raised:
            app.ensure_sync(view)()
        del raised
        assert gone == ["gone"]
    finally:
        gc.enable()


def test_an_interrupt_cancels_the_view_and_waits_for_it() -> None:
    assert in_a_process(INTERRUPT) == "cancelled\nreleased 0\ninterrupted\n"


INTERRUPT = """
import asyncio, os, signal
from flask import Flask
from sqlalchemy import text
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from flask_sqlalchemy_session.asyncio import (
    FlaskAsyncScopedSession,
    use_one_event_loop,
)

# What a shell starts in the background ignores it.
signal.signal(signal.SIGINT, signal.default_int_handler)
app = Flask("shop")
use_one_event_loop(app)
engine = create_async_engine("sqlite+aiosqlite://")
session = FlaskAsyncScopedSession(async_sessionmaker(engine), app)

async def view():
    await session.execute(text("SELECT 1"))
    os.kill(os.getpid(), signal.SIGINT)
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        await asyncio.sleep(0.01)
        print("cancelled", flush=True)
        raise

try:
    with app.app_context():
        app.ensure_sync(view)()
except KeyboardInterrupt:
    print("released", engine.pool.status().count("in use"), flush=True)
    print("interrupted")

async def end():
    await engine.dispose()
app.ensure_sync(end)()
"""


@pytest.mark.usefixtures("no_collector")
def test_the_last_reference_frees_an_application() -> None:
    app = Flask("shop", static_folder=None)  # whose view would refer to it
    use_one_event_loop(app)
    assert app.ensure_sync(running_loop)()
    alive = weakref.ref(app)
    del app
    assert alive() is None


@before_flask_3_2("it refuses to pop a context that is not current")
def test_the_process_ends_while_a_thread_closes_a_session(tmp_path: Path) -> None:
    program = CLOSED_AT_THE_END.replace("DIRECTORY", str(tmp_path))
    told = in_a_process(program)
    assert "task ends" in told
    assert "[closing]" not in told


CLOSED_AT_THE_END = """
import asyncio, contextvars, threading
from contextlib import suppress
from flask import Flask
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from flask_sqlalchemy_session.asyncio import (
    FlaskAsyncScopedSession, current_async_session, use_one_event_loop
)

closing, kept = threading.Event(), []

class Slow(AsyncSession):
    async def close(self):
        closing.set()
        await asyncio.sleep(0.5)
        await super().close()

engine = create_async_engine("sqlite+aiosqlite:///DIRECTORY/test.sqlite3")
app = Flask("shop")
use_one_event_loop(app)
FlaskAsyncScopedSession(async_sessionmaker(engine, class_=Slow), app)

async def forever():
    try:
        await asyncio.Event().wait()
    finally:
        print("task ends", flush=True)

async def use():
    await current_async_session.execute(text("SELECT 1"))
    kept.append(asyncio.create_task(forever()))

def begin():
    context.push()
    app.ensure_sync(use)()

def end():
    with suppress(Exception):
        context.pop()

context = app.app_context()
contextvars.Context().run(begin)
threading.Thread(target=end, daemon=True).start()
closing.wait()
"""


def test_the_loop_ends_with_the_process() -> None:
    assert in_a_process(END) == "main ends\ntask ends\ngenerator ends\n"


END = """
import asyncio
from flask import Flask
from flask_sqlalchemy_session.asyncio import use_one_event_loop

app = Flask("shop")
use_one_event_loop(app)
kept = []

async def generator():
    try:
        yield
    finally:
        print("generator ends", flush=True)

async def forever():
    try:
        await asyncio.Event().wait()
    finally:
        print("task ends", flush=True)

async def view():
    kept.append(asyncio.create_task(forever()))
    kept.append(generator())
    await anext(kept[1])

app.ensure_sync(view)()
print("main ends", flush=True)
"""


def test_a_context_that_never_uses_the_session_calls_nothing_async() -> None:
    assert in_a_process(SYNC) == "200 200\n1 []\n"


SYNC = """
import inspect, sys, threading
from flask import Flask
from sqlalchemy.ext.asyncio import async_sessionmaker
from flask_sqlalchemy_session.asyncio import (
    FlaskAsyncScopedSession,
    use_one_event_loop,
)

app = Flask("shop")
use_one_event_loop(app)
FlaskAsyncScopedSession(async_sessionmaker(), app)
app.add_url_rule("/", view_func=lambda: "", endpoint="view")
client = app.test_client()
called = set()

def note(frame, *_):
    module = frame.f_globals["__name__"]
    of_async = ("asyncio", "asgiref", "flask_sqlalchemy_session.asyncio")
    if module.startswith(of_async) or frame.f_code.co_flags & inspect.CO_COROUTINE:
        called.add(frame.f_code.co_name)

sys.setprofile(note)
threading.setprofile(note)
statuses = [client.get("/").status_code for _ in range(2)]
sys.setprofile(None)
print(*statuses)
print(threading.active_count(), sorted(called))
"""


def test_the_package_alone_imports_nothing_of_it() -> None:
    program = (
        "import sys, flask, sqlalchemy.orm\n"  # SQLAlchemy 2.0 itself imports greenlet
        "before = set(sys.modules)\n"
        "import flask_sqlalchemy_session\n"
        "print([name for name in set(sys.modules) - before if name.startswith(("
        "'asyncpg', 'flask_sqlalchemy_session.asyncio', 'greenlet', "
        "'sqlalchemy.ext.asyncio', 'asgiref'))])"
    )
    assert in_a_process(program) == "[]\n"


def test_without_greenlet_the_error_says_what_to_install() -> None:
    program = (
        "import sys\n"
        "sys.modules['greenlet'] = None\n"
        "try:\n"
        "    import flask_sqlalchemy_session.asyncio\n"
        "except ImportError as error:\n"
        "    print(error)"
    )
    assert "pip install 'sqlalchemy[asyncio]'" in in_a_process(program)


def test_without_asgiref_it_works() -> None:
    program = (
        "import sys\n"
        "sys.modules['asgiref'] = sys.modules['asgiref.sync'] = None\n"
        "from flask import Flask\n"
        "from flask_sqlalchemy_session.asyncio import use_one_event_loop\n"
        "app = Flask('shop')\n"
        "use_one_event_loop(app)\n"
        "async def view():\n"
        "    return 'shown'\n"
        "print(app.ensure_sync(view)())"
    )
    assert in_a_process(program) == "shown\n"


def test_greenlets_start_it_at_once_where_gevent_patched_after_the_import() -> None:
    """As below gunicorn with `--preload`, whose worker patches what it has forked."""
    assert in_a_process(PATCHED_LATE) == "[1, 1]\n1\n"


PATCHED_LATE = """
import faulthandler, threading
faulthandler.dump_traceback_later(20, exit=True)
from flask import Flask
from flask_sqlalchemy_session.asyncio import use_one_event_loop

app = Flask("shop")
use_one_event_loop(app)

from gevent import monkey
monkey.patch_all()
import asyncio, gevent

loops = set()

async def view():
    loops.add(asyncio.get_running_loop())
    return len(loops)

greenlets = [gevent.spawn(app.ensure_sync(view)) for _ in range(2)]
print([greenlet.get() for greenlet in greenlets])
# Another loop, which the second greenlet made meanwhile, is closed.
print(sum("asyncio" in thread.name for thread in threading.enumerate()))
"""


# Under a server that asgiref wraps the application for


async def get(application: WsgiToAsgi, path: str) -> tuple[object, str]:
    """Answer a request as an ASGI server does."""
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "GET",
        "path": path,
        "query_string": b"",
        "headers": [],
        "http_version": "1.1",
    }
    await application(scope, receive, send)
    bodies = [message.get("body", b"") for message in sent]
    return sent[0]["status"], b"".join(
        body for body in bodies if isinstance(body, bytes)
    ).decode()


def test_under_an_asgi_server_views_and_teardowns_run_on_the_servers_loop(
    app: Flask, postgresql_url: str
) -> None:
    url = postgresql_url.replace("+psycopg", "+asyncpg")
    engine = create_async_engine(url)
    held = Held(engine.sync_engine)
    session = FlaskAsyncScopedSession(async_sessionmaker(engine), app)
    loops: list[asyncio.AbstractEventLoop] = []

    @app.before_request
    def before() -> None:
        session.info["made"] = "by sync code"

    @app.get("/")
    async def view() -> str:
        loops.append(asyncio.get_running_loop())
        backend = await session.scalar(text("SELECT pg_backend_pid()"))
        return f"{current_async_session.info['made']} {backend}"

    async def server() -> None:
        application = WsgiToAsgi(app)  # type: ignore[no-untyped-call]  # asgiref has no types for it
        answers = await asyncio.gather(*[get(application, "/") for _ in range(20)])
        assert {status for status, _ in answers} == {200}
        assert len({answer for _, answer in answers}) == 1
        assert held.count == 0
        assert set(loops) == {asyncio.get_running_loop()}
        await engine.dispose()

    asyncio.run(server())


# Interrupts other than the user's


def test_a_signal_handler_that_raises_interrupts_the_view_too(app: Flask) -> None:
    ended: list[str] = []

    def give_up(*_: object) -> None:
        raise SystemExit(1)

    async def view() -> None:
        try:
            os.kill(os.getpid(), signal.SIGUSR1)
            await asyncio.Event().wait()
        finally:
            ended.append("view")

    before: Callable[..., object] | int | None = signal.signal(signal.SIGUSR1, give_up)
    try:
        with pytest.raises(SystemExit):
            app.ensure_sync(view)()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert ended == ["view"]


def test_a_task_factory_of_ones_own_makes_the_tasks_of_views(app: Flask) -> None:
    made: list[object] = []

    def factory(
        loop: asyncio.AbstractEventLoop, coroutine: Any, **keywords: Any
    ) -> asyncio.Task[Any]:
        made.append(coroutine)
        return asyncio.Task(coroutine, loop=loop, **keywords)

    async def view() -> None:
        pass

    loop = app.ensure_sync(running_loop)()
    loop.call_soon_threadsafe(loop.set_task_factory, factory)
    try:
        app.ensure_sync(view)()
        app.ensure_sync(view)()
        assert made
    finally:
        loop.call_soon_threadsafe(loop.set_task_factory, None)
