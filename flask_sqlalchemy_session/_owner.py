"""What the scoped session objects share, whatever sort of session they keep."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar

from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.util import ScopedRegistry

from ._registry import ContextRegistry

T = TypeVar("T")


class ContextScoped(Generic[T]):
    """An owner of sessions: its name, and the ways to the current context's one."""

    registry: ScopedRegistry[T]
    _registry: ContextRegistry[T]
    _proxy: T

    session_factory: Any  # each class says of what type

    if TYPE_CHECKING:  # each class has its own

        def remove(self) -> Any:
            """Close the current context's session."""

    @property
    def name(self) -> str:
        """The name that tells this object from others on the same application."""
        return self._registry.name

    @property
    def proxy(self) -> T:
        """A proxy to the current context's session, typed as that session.

        Export it from a module to have a ``current_session`` of your own session
        class, or one for each database::

            current_session = session.proxy

        Like :data:`flask.g` it can be imported anywhere and stands for the real
        session whenever it is used. Any use outside a context raises a
        :exc:`RuntimeError`.
        """
        return self._proxy

    def __call__(self, **kw: object) -> T:
        """Return the current context's session, made if this is its first use.

        :param kw: passed to the factory for a session that is to be made.
        :return: the session itself. It is closed when the context ends.
        :raises RuntimeError: outside an application context, or when the
            application was not set up with :meth:`init_app`.
        :raises TypeError: when the factory does not take the keyword arguments, or
            returns something other than a session.
        :raises sqlalchemy.exc.InvalidRequestError: when there are keyword arguments
            and the session was made already.
        """
        if not kw:
            registry = self._registry
            holder = registry.holder()
            if holder is None:
                return registry.open() if self.registry is registry else self.registry()
            session: T = holder.session
            return session
        if self.registry.has():
            raise InvalidRequestError(
                "This context's session was made already, so session(**keywords) "
                "can't pass keyword arguments to the factory. Pass them on first "
                "use, or call session.remove() before. [made-already]"
            )
        return self._registry.open(kw)

    # Hidden from type checkers, to which either would make any name acceptable.
    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> object:
            # Private names are probes, by a shell or by `copy`, or belong to the
            # session alone; none of them may make a session. A property of the
            # class comes here when it raised: it is the session that it lacks.
            own = getattr(type(self), name, None)  # that of `type` too: `__name__`
            is_private = name.startswith("_") or name == "registry"  # not there yet
            if is_private and not isinstance(own, property):
                raise AttributeError(
                    f"{type(self).__name__!r} object has no attribute {name!r}"
                )
            return getattr(self.registry(), name)

        def __setattr__(self, name: str, value: object) -> None:
            # What landed here would hide the attribute of every later session. A
            # user's subclass may keep attributes of its own, which type checkers know.
            if ContextScoped in type(self).__bases__ and not (
                name.startswith("_")
                or name in ("registry", "session_factory")
                or hasattr(type(self), name)
            ):
                raise AttributeError(
                    f"{type(self).__name__!r} object has no attribute {name!r}. To set "
                    f"it on the current context's session, write 'session().{name} = "
                    "...'. [no-attribute]"
                )
            super().__setattr__(name, value)
