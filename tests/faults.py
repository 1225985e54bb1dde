"""What goes wrong in a request or another context, once for sync and async sessions.

Each fault sets a scoped session up, before or after hooks of its own, and uses it. What
it returns is kept until the connections are counted.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeAlias, TypeVar

import pytest
from flask import Flask, appcontext_tearing_down, stream_with_context
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from flask_sqlalchemy_session import FlaskScopedSession
from flask_sqlalchemy_session.asyncio import FlaskAsyncScopedSession
from tests.support import OopsError, raises

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ScopedT = TypeVar(
    "ScopedT",
    bound=FlaskScopedSession[Session] | FlaskAsyncScopedSession[AsyncSession],
)


class Side(ABC, Generic[ScopedT]):
    """A scoped session, sync or async, and what takes steps with it."""

    session: ScopedT

    def __init__(self, app: Flask, make: Callable[[], ScopedT]) -> None:
        self.app = app
        self._make = make

    def set_up(self) -> ScopedT:
        self.session = self._make()
        return self.session

    def init_app(self, app: Flask) -> None:
        self.session.init_app(app)

    @abstractmethod
    def use(self) -> object:
        """Take a connection, begin a transaction and leave marks of both."""

    def remove(self) -> object:
        return self.session.remove()

    @abstractmethod
    def does(self, *steps: Callable[[], object]) -> Callable[..., Any]:
        """Return a view or hook that takes these steps one after the other."""

    def here(self, *steps: Callable[[], object]) -> None:
        """Take steps where nothing can be awaited."""
        self.app.ensure_sync(self.does(*steps))()

    def view(self, *steps: Callable[[], object]) -> None:
        self.app.add_url_rule("/", view_func=self.does(*steps))

    def is_unused(self) -> None:
        assert "mark" not in self.session.info


Fault: TypeAlias = "Callable[[Flask, Side[Any]], object]"
FAULTS: list[Fault] = []


class ExitError(SystemExit):
    """An exit that a server's own signal handler would not raise."""


def fault(function: Fault) -> Fault:
    FAULTS.append(function)
    return function


def raising(error: type[BaseException]) -> Callable[[], NoReturn]:
    def fail() -> NoReturn:
        raise error

    return fail


fail = raising(OopsError)


def get(app: Flask) -> None:
    assert app.test_client().get("/").status_code == 200


def get_and_catch(
    app: Flask, error: type[BaseException] = OopsError
) -> list[BaseException]:
    """Keep the exception, and with it every frame that it went through."""
    app.testing = True
    with raises(error) as caught:
        app.test_client().get("/")
    return caught


@fault
def a_request(app: Flask, side: Side[Any]) -> object:
    side.set_up()
    side.view(side.use)
    get(app)
    return None


@fault
def a_view_that_raises(app: Flask, side: Side[Any]) -> object:
    side.set_up()
    side.view(side.use, fail)
    assert app.test_client().get("/").status_code == 500
    return None


def a_view_that_raises_what_is_kept(error: type[BaseException]) -> Fault:
    def a_view_that_raises(app: Flask, side: Side[Any]) -> object:
        side.set_up()
        side.view(side.use, raising(error))
        return get_and_catch(app, error)

    a_view_that_raises.__name__ += f"_{error.__name__}"
    return a_view_that_raises


for error in (OopsError, ExitError, KeyboardInterrupt, asyncio.CancelledError):
    fault(a_view_that_raises_what_is_kept(error))


@fault
def an_app_hook_before_ours_that_raises(app: Flask, side: Side[Any]) -> object:
    app.teardown_appcontext(side.does(fail))
    side.set_up()
    side.view(side.use)
    return get_and_catch(app)


@fault
def an_app_hook_after_ours_that_raises(app: Flask, side: Side[Any]) -> object:
    side.set_up()
    side.view(side.use)
    app.teardown_appcontext(side.does(fail))
    return get_and_catch(app)


@fault
def a_request_hook_before_ours_that_raises(app: Flask, side: Side[Any]) -> object:
    app.teardown_request(side.does(fail))
    side.set_up()
    side.view(side.use)
    return get_and_catch(app)


@fault
def a_request_hook_after_ours_that_raises(app: Flask, side: Side[Any]) -> object:
    side.set_up()
    side.view(side.use)
    app.teardown_request(side.does(fail))
    return get_and_catch(app)


@fault
def every_hook_raises_after_the_view_did(app: Flask, side: Side[Any]) -> object:
    app.teardown_appcontext(side.does(fail))
    app.teardown_request(side.does(fail))
    side.set_up()
    side.view(side.use, fail)
    app.teardown_appcontext(side.does(fail))
    app.teardown_request(side.does(fail))
    return get_and_catch(app)


@fault
def a_hook_before_the_view_that_raises(app: Flask, side: Side[Any]) -> object:
    side.set_up()
    side.view(side.use)
    app.before_request(side.does(side.use, fail))
    return get_and_catch(app)


@fault
def a_hook_after_the_view_that_raises(app: Flask, side: Side[Any]) -> object:
    side.set_up()
    side.view(side.use)
    app.after_request(side.does(fail))
    return get_and_catch(app)


@fault
def an_error_handler_that_uses_the_session_and_raises(
    app: Flask, side: Side[Any]
) -> object:
    side.set_up()
    side.view(side.use, raising(LookupError))
    app.register_error_handler(LookupError, side.does(side.use, fail))
    return get_and_catch(app)


@fault
def a_signal_receiver_that_raises(app: Flask, side: Side[Any]) -> object:
    side.set_up()
    side.view(side.use)

    def receive(sender: Flask, **_: object) -> None:
        raise OopsError

    with appcontext_tearing_down.connected_to(receive, app):
        return get_and_catch(app)


@fault
def hooks_that_use_the_session_late(app: Flask, side: Side[Any]) -> object:
    seen: list[object] = []
    late = side.does(side.use, lambda: seen.append(side.session()))
    app.teardown_appcontext(late)
    app.teardown_request(late)
    side.set_up()
    app.teardown_appcontext(late)
    app.teardown_request(late)
    app.add_url_rule("/", view_func=late)
    get(app)
    assert seen == seen[:1] * 5
    return None


@fault
def a_hook_that_is_the_first_to_use_the_session(app: Flask, side: Side[Any]) -> object:
    app.teardown_appcontext(side.does(side.use))
    side.set_up()
    side.view()
    get(app)
    return None


@fault
def a_late_hook_after_a_view_that_raised(app: Flask, side: Side[Any]) -> object:
    app.teardown_appcontext(side.does(side.use))
    side.set_up()
    side.view(side.use, fail)
    return get_and_catch(app)


@fault
def a_late_hook_that_also_raises(app: Flask, side: Side[Any]) -> object:
    app.teardown_appcontext(side.does(side.use, fail))
    side.set_up()
    side.view(side.use, fail)
    return get_and_catch(app)


@fault
def a_hook_that_uses_the_session_after_remove(app: Flask, side: Side[Any]) -> object:
    app.teardown_appcontext(side.does(side.remove, side.use))
    side.set_up()
    side.view(side.use)
    get(app)
    return None


@fault
def a_remove_that_raises_first(app: Flask, side: Side[Any]) -> object:
    session = side.set_up()
    side.view(side.use)
    # As a subclass would that extends it.
    session.remove = side.does(fail)
    caught = get_and_catch(app)
    del session.remove
    return caught


@fault
def a_remove_that_uses_the_session_again(app: Flask, side: Side[Any]) -> object:
    session = side.set_up()
    side.view(side.use)
    session.remove = side.does(session.remove, side.use)
    get(app)
    del session.remove
    return None


@fault
def a_thread_that_uses_the_session_after_the_request(
    app: Flask, side: Side[Any]
) -> object:
    side.set_up()
    ended = threading.Event()
    threads: list[threading.Thread] = []

    def work() -> None:
        assert ended.wait(30)
        side.here(side.is_unused, side.use)

    @app.get("/")
    def index() -> str:
        side.here(side.use)
        variables = contextvars.copy_context()
        threads.append(threading.Thread(target=variables.run, args=(work,)))
        threads[0].start()
        return ""

    get(app)
    ended.set()
    with pytest.warns(ResourceWarning, match="by a thread that inherited"):
        threads.pop().join()
    return None


def streaming_view(side: Side[Any], *then: Callable[[], object]) -> None:
    # Before Flask 3.1.2 an async view, in another thread, could not call
    # `stream_with_context`.
    @side.app.get("/")
    def index() -> Iterator[str]:
        def rows() -> Iterator[str]:
            for _ in range(3):
                side.here(side.use)
                yield "row "
            side.here(*then)

        side.here(side.use)
        return stream_with_context(rows())


@fault
def a_stream_that_is_read_to_its_end(app: Flask, side: Side[Any]) -> object:
    side.set_up()
    streaming_view(side)
    assert app.test_client().get("/").text == "row row row "
    return None


@fault
def a_stream_whose_client_goes_away(app: Flask, side: Side[Any]) -> object:
    side.set_up()
    streaming_view(side)
    response = app.test_client().get("/", buffered=False)
    assert next(iter(response.iter_encoded())) == b"row "
    response.close()
    return response


@fault
def a_stream_whose_body_raises(app: Flask, side: Side[Any]) -> object:
    side.set_up()
    streaming_view(side, fail)
    response = app.test_client().get("/")
    with raises(OopsError) as caught:
        response.get_data()
    response.close()
    return caught


@fault
def a_client_that_preserves_its_context(app: Flask, side: Side[Any]) -> object:
    side.set_up()
    side.view(side.use)
    with app.test_client() as client:
        for _ in range(2):
            client.get("/")
            side.here(side.use)
    return client


@fault
def a_command(app: Flask, side: Side[Any]) -> object:
    side.set_up()
    app.cli.command("work")(lambda: side.here(side.use))
    result = app.test_cli_runner().invoke(args=["work"])
    assert result.exit_code == 0, result.output
    return result


@fault
def a_command_that_raises(app: Flask, side: Side[Any]) -> object:
    side.set_up()
    app.cli.command("work")(lambda: side.here(side.use, fail))
    result = app.test_cli_runner().invoke(args=["work"])
    assert isinstance(result.exception, OopsError)
    return result


@fault
def a_context_that_is_pushed_again(app: Flask, side: Side[Any]) -> object:
    side.set_up()
    context = app.app_context()
    for _ in range(2):
        with context:
            side.here(side.is_unused, side.use)
    return context


@fault
def a_context_that_its_own_g_refers_to(app: Flask, side: Side[Any]) -> object:
    side.set_up()
    with app.app_context() as context:
        side.here(side.use)
        context.g.context = context
    return None


@fault
def an_app_whose_teardown_is_its_own(app: Flask, side: Side[Any]) -> object:
    class Shop(Flask):
        def do_teardown_appcontext(self, ctx=None, exc=None):  # type: ignore[no-untyped-def, override]  # as Flask 3.2 knows it, where it is called "ctx"
            side.here(side.use)
            raise OopsError

    shop = Shop("shop")
    side.set_up()
    side.init_app(shop)
    shop.add_url_rule("/", view_func=side.does(side.use))
    return get_and_catch(shop)
