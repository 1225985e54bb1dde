"""A model of the scope: contexts, sessions and faults in any order.

A line of control (a thread, a greenlet, a task) is what has context variables of its
own, so each is a `contextvars.Context` here. The lines take turns in one thread, or
run each step in a thread of its own, with the same result and in a known order.
"""

from __future__ import annotations

import os
import sys
import warnings
from contextvars import Context, copy_context
from functools import partial
from threading import Thread
from typing import TYPE_CHECKING, Protocol, TypeVar
from weakref import ref

import pytest
from flask import Flask, current_app, has_app_context
from flask.globals import app_ctx
from hypothesis import HealthCheck, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from sqlalchemy import Engine, QueuePool, create_engine, text
from sqlalchemy.orm import Session, sessionmaker

from flask_sqlalchemy_session import FlaskScopedSession
from tests.scope.flask_versions import before_flask_3_2
from tests.support import Held

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from flask.ctx import AppContext

T = TypeVar("T")


class Planned(Exception):  # noqa: N818  # a fault of the model's, not an error
    """What hooks and closes raise when the model tells them to."""


class Faulty(Protocol):
    """A session, sync or async, that the model tells how its end is to fail."""

    fault: str | None

    @property
    def info(self) -> dict[str, int]: ...


class Registry(Protocol):
    def has(self) -> bool: ...


F_co = TypeVar("F_co", bound=Faulty, covariant=True)


class Scoped(Protocol[F_co]):
    """A scoped session object of either side."""

    @property
    def name(self) -> str: ...
    @property
    def registry(self) -> Registry: ...
    def init_app(self, app: Flask) -> None: ...
    def __call__(self) -> F_co: ...


class FaultySession(Session):
    """A session whose close fails, before or after it has done its work, if told."""

    fault: str | None = None

    def close(self) -> None:
        if self.fault == "before":
            raise Planned
        super().close()
        if self.fault == "after":
            raise Planned


class FaultyScopedSession(FlaskScopedSession[FaultySession]):
    """A scoped session whose `remove` fails for the sessions that are told so."""

    def remove(self) -> None:
        if self.registry.has() and self().fault == "remove":
            raise Planned
        super().remove()


def run_elsewhere(
    action: Callable[[], T], run: Callable[[Callable[[], None]], None]
) -> T:
    """Let something else run an action, and return or raise here what that does."""
    # No future: one that fails is part of a cycle, which keeps contexts alive.
    done: list[T] = []
    failed: list[Exception] = []

    def act() -> None:
        try:
            done.append(action())
        except Exception as error:  # noqa: BLE001  # raised where it is awaited
            failed.append(error)

    run(act)
    if failed:
        raise failed.pop()
    return done.pop()


class Line:
    """A line of control, with the contexts that it pushed itself."""

    def __init__(self, variables: Context, *, in_thread: bool = False) -> None:
        self.variables = variables
        self.in_thread = in_thread
        self.contexts: list[AppContext] = []

    def run(self, action: Callable[[], T]) -> T:
        """Run something with the line's context variables."""
        if not self.in_thread:
            return self.variables.run(action)
        return run_elsewhere(action, self.run_in_thread)

    def run_in_thread(self, action: Callable[[], None]) -> None:
        thread = Thread(target=self.variables.run, args=(action,))
        thread.start()
        thread.join()

    def current(self) -> AppContext | None:
        """Return the line's current context: its own or an inherited one."""

        def find() -> AppContext | None:
            if not has_app_context():
                return None
            # Flask types the proxy as the context; Werkzeug documents the method.
            context: AppContext = app_ctx._get_current_object()  # type: ignore[attr-defined]
            return context

        return self.variables.run(find)


class Expected:
    """What one context should have."""

    def __init__(self, context: AppContext) -> None:
        self.context = ref(context)
        #: By the number of the scoped session object.
        self.sessions: dict[int, Faulty] = {}


numbers = st.integers(0, 3)
objects = st.integers(0, 2)
hooks = st.sampled_from(["first", "last"])
faults = st.sampled_from([None, None, None, "before", "after", "remove"])


def pick(number: int, lines: list[Line]) -> Line:
    return lines[number % len(lines)]


class Scopes(RuleBasedStateMachine):
    extension = "sqlalchemy_session"

    def __init__(self) -> None:
        super().__init__()
        # The safety net warns of what stragglers leave; nothing else may.
        self.catching = warnings.catch_warnings(record=True)
        self.warned = self.catching.__enter__()
        warnings.simplefilter("always")
        # What closing raises in a finaliser, Python passes on to this hook.
        self.unraisable: list[type[BaseException]] = []
        self.unraisable_hook = sys.unraisablehook
        sys.unraisablehook = lambda args: self.unraisable.append(args.exc_type)
        self.engine = self.make_engine()
        self.held = Held(self.engine)
        self.objects = self.make_objects(["default", "second", "third"])
        self.apps = [self.make_app([0, 1, 2]), self.make_app([0, 2])]
        self.lines = [Line(Context()), Line(Context())]
        #: Contexts that are popped and can be pushed again.
        self.parked: list[AppContext] = []
        self.expected: list[Expected] = []
        #: Every session there was.
        self.seen: list[Faulty] = []
        self.dropped = 0
        #: What the hooks of the next teardown are to do, and what they got.
        self.raising: set[str] = set()
        self.late: dict[str, int] = {}
        self.got_late: list[tuple[int, Faulty]] = []

    # What is different for async sessions.

    def make_engine(self) -> Engine:
        return create_engine(
            "sqlite://",
            poolclass=QueuePool,
            pool_size=100,
            connect_args={"check_same_thread": False},
        )

    def make_objects(self, names: list[str]) -> Sequence[Scoped[Faulty]]:
        factory = sessionmaker(self.engine, class_=FaultySession)
        self.scoped = [FaultyScopedSession(factory, name=name) for name in names]
        return self.scoped

    def execute(self, number: int) -> None:
        """Use a session of the current context."""
        self.scoped[number].execute(text("SELECT 1"))

    def execute_in(self, line: Line, number: int) -> None:
        line.run(partial(self.execute, number))

    def remove_in(self, line: Line, number: int) -> None:
        line.run(self.scoped[number].remove)

    def raises_what_closing_raises(self, line: Line) -> bool:
        """Tell whether a context that a line pops raises what closing raises."""
        return True

    def settle(self) -> None:
        """Wait for what is closed in the background."""

    def dispose(self) -> None:
        self.engine.dispose()

    @property
    def pushing(self) -> list[Line]:
        """The lines that have pushed a context and not popped it."""
        return [line for line in self.lines if line.contexts]

    @property
    def in_context(self) -> list[Line]:
        """The lines that have a context, their own or one that they inherited."""
        return [line for line in self.lines if line.current()]

    def make_app(self, numbers: list[int]) -> Flask:
        """Make an app with some of the objects, and a hook on either side of them."""
        app = Flask("model")
        app.teardown_appcontext(partial(self.hook, "first"))
        for number in numbers:
            self.objects[number].init_app(app)
        app.teardown_appcontext(partial(self.hook, "last"))
        return app

    def hook(self, name: str, error: BaseException | None) -> None:
        if name in self.late:
            number = self.late[name]
            if self.is_set_up(number, current_app):
                self.execute(number)
                self.got_late.append((number, self.objects[number]()))
        if name in self.raising:
            raise Planned

    def is_set_up(self, number: int, app: Flask) -> bool:
        return self.objects[number].name in app.extensions[self.extension]

    def expected_of(self, context: AppContext) -> Expected:
        for expected in self.expected:
            if expected.context() is context:
                return expected
        self.expected.append(Expected(context))
        return self.expected[-1]

    @rule(number=numbers, app=st.integers(0, 1))
    def push(self, number: int, app: int) -> None:
        line = pick(number, self.lines)
        context = self.apps[app].app_context()
        line.run(context.push)
        line.contexts.append(context)

    @precondition(lambda self: self.parked)
    @rule(number=numbers)
    def push_again(self, number: int) -> None:
        """Push a context after its teardown, as `stream_with_context` does."""
        line = pick(number, self.lines)
        context = self.parked.pop()
        line.run(context.push)
        line.contexts.append(context)

    @precondition(lambda self: self.pushing)
    @rule(number=numbers)
    def push_twice(self, number: int) -> None:
        """Push the context that is on top, which takes two pops to tear down."""
        line = pick(number, self.pushing)
        line.run(line.contexts[-1].push)
        line.contexts.append(line.contexts[-1])

    @precondition(lambda self: self.pushing and len(self.lines) < 4)
    @rule(number=numbers, in_thread=st.booleans())
    def copy(self, number: int, in_thread: bool) -> None:
        """Start a line that inherits another's context."""
        variables = pick(number, self.pushing).run(copy_context)
        self.lines.append(Line(variables, in_thread=in_thread))

    @precondition(lambda self: self.in_context)
    @rule(number=numbers, which=st.sets(objects, min_size=1), fault=faults)
    def use(self, number: int, which: set[int], fault: str | None) -> None:
        """Use some of the sessions, the end of which is to fail or not."""
        self.use_in(pick(number, self.in_context), which, fault)

    def use_in(self, line: Line, which: set[int], fault: str | None) -> None:
        context = line.current()
        assert context is not None
        for one in which:
            session = self.objects[one]
            if not self.is_set_up(one, context.app):
                with pytest.raises(RuntimeError):
                    line.run(session)
                continue
            real = line.run(session)
            expected = self.expected_of(context).sessions
            if one in expected:
                assert real is expected[one]
            else:
                self.check_new(real)
                expected[one] = real
            self.execute_in(line, one)
            real.fault = fault

    def check_new(self, session: Faulty) -> None:
        assert not any(session is other for other in self.seen)
        assert not session.info
        session.info["mark"] = len(self.seen)
        self.seen.append(session)

    @precondition(lambda self: self.pushing and len(self.lines) < 4)
    @rule(number=numbers, which=st.sets(objects, min_size=1), fault=faults)
    def outlive(self, number: int, which: set[int], fault: str | None) -> None:
        """Use sessions in a line that outlives the context that it inherited."""
        line = pick(number, self.pushing)
        heir = Line(line.run(copy_context), in_thread=True)
        while line.contexts:
            self.pop_in(line)
        self.lines.append(heir)
        self.use_in(heir, which, fault)

    @precondition(lambda self: self.in_context)
    @rule(number=numbers, which=objects)
    def remove(self, number: int, which: int) -> None:
        line = pick(number, self.in_context)
        context = line.current()
        assert context is not None
        sessions = self.expected_of(context).sessions
        fault = sessions[which].fault if which in sessions else None
        try:
            self.remove_in(line, which)
        except Planned:
            assert fault is not None
        else:
            assert fault is None
        if fault != "remove":
            sessions.pop(which, None)

    @precondition(lambda self: self.pushing)
    @rule(
        number=numbers,
        raising=st.sets(hooks),
        late=st.dictionaries(hooks, objects),
        keep=st.booleans(),
    )
    def pop(
        self, number: int, raising: set[str], late: dict[str, int], keep: bool
    ) -> None:
        self.raising, self.late = raising, late
        self.pop_in(pick(number, self.pushing), keep=keep)

    def pop_in(self, line: Line, *, keep: bool = False) -> None:
        context = line.contexts.pop()
        expected = self.expected_of(context).sessions
        last = context not in line.contexts
        faults = [session.fault for session in expected.values()]
        closing_raises = any(faults) and self.raises_what_closing_raises(line)
        failing = last and (self.raising or closing_raises)
        try:
            line.run(context.pop)
        except Exception as error:
            # Flask 3.2 raises a group where several hooks fail.
            if not (failing and self.is_planned(error)):
                raise
        else:
            assert not failing
        for which, session in self.got_late:
            if which in expected:
                assert session is expected[which]
            else:
                self.check_new(session)
                expected[which] = session
        self.got_late.clear()
        self.raising, self.late = set(), {}
        if last:
            expected.clear()
            if keep:
                self.parked.append(context)

    def is_planned(self, error: BaseException | None) -> bool:
        if error is None or isinstance(error, Planned):
            return error is not None
        errors: tuple[BaseException, ...] = getattr(error, "exceptions", ())
        return bool(errors) and all(self.is_planned(one) for one in errors)

    @precondition(lambda self: self.parked)
    @rule()
    def forget(self) -> None:
        """Let go of the popped contexts. Lines that inherited them may not have."""
        self.parked.clear()

    @precondition(lambda self: len(self.pushing) < len(self.lines) > 1)
    @rule(number=numbers)
    def end_line(self, number: int) -> None:
        """Let go of a line that has popped what it pushed."""
        ended = [line for line in self.lines if not line.contexts]
        self.lines.remove(pick(number, ended))

    @invariant()
    def every_context_has_its_own_sessions_and_no_other(self) -> None:
        for line in self.lines:
            context = line.current()
            if context is None:
                continue
            sessions = self.expected_of(context).sessions
            for which, session in enumerate(self.objects):
                assert line.variables.run(session.registry.has) is (which in sessions)
                if which in sessions:
                    assert line.variables.run(session) is sessions[which]
                    mark = sessions[which].info["mark"]
                    assert self.seen[mark] is sessions[which]

    @invariant()
    def only_sessions_of_living_contexts_hold_connections(self) -> None:
        self.settle()
        for expected in self.expected:
            if expected.context() is None:
                self.dropped += len(expected.sessions)
        self.expected = [e for e in self.expected if e.context() is not None]
        sessions = [s for e in self.expected for s in e.sessions.values()]
        assert len({id(session) for session in sessions}) == len(sessions)
        assert self.held.count == len(sessions)
        assert [w.category for w in self.warned] == [ResourceWarning] * self.dropped

    def teardown(self) -> None:
        while self.pushing:
            self.pop_in(self.pushing[0])
        self.lines.clear()
        self.parked.clear()
        try:
            self.only_sessions_of_living_contexts_hold_connections()
            assert self.held.count == 0
            assert set(self.unraisable) <= {Planned}
        finally:
            sys.unraisablehook = self.unraisable_hook
            self.catching.__exit__(None, None, None)
            self.dispose()


TestScopes = before_flask_3_2("what is pushed above another again is not current")(
    Scopes.TestCase
)
TestScopes.settings = settings(
    deadline=None,
    derandomize="CI" in os.environ,
    max_examples=int(os.environ.get("MODEL_EXAMPLES", "100")),
    stateful_step_count=50,
    suppress_health_check=[HealthCheck.too_slow],
)
