"""OpenTelemetry: a request's statements are part of its trace."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import select

from flask_sqlalchemy_session import current_session
from tests.support import Base, User

pytest.importorskip("opentelemetry.instrumentation.flask")

from opentelemetry.instrumentation.flask import FlaskInstrumentor
from opentelemetry.instrumentation.sqlalchemy import SQLAlchemyInstrumentor
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flask import Flask
    from flask.testing import FlaskClient
    from sqlalchemy import Engine
    from sqlalchemy.orm import Session

    from flask_sqlalchemy_session import FlaskScopedSession
    from tests.support import Held


pytestmark = pytest.mark.skipif(
    not version("sqlalchemy").startswith("2.0."),
    reason="its instrumentation refuses SQLAlchemy 2.1",
)


def add_traces(app: Flask, engine: Engine, provider: TracerProvider) -> None:
    FlaskInstrumentor().instrument_app(app, tracer_provider=provider)  # type: ignore[no-untyped-call]  # it has no annotations
    SQLAlchemyInstrumentor().instrument(engine=engine, tracer_provider=provider)


class Traced:
    """An application's browser, and what was traced."""

    def __init__(self, client: FlaskClient, exporter: InMemorySpanExporter) -> None:
        self.client = client
        self.exporter = exporter

    def span(self, start: str) -> ReadableSpan:
        """Return the one span whose name starts so."""
        (span,) = (
            span
            for span in self.exporter.get_finished_spans()
            if span.name.startswith(start)
        )
        return span


@pytest.fixture
def traced(
    app: Flask, session: FlaskScopedSession[Session], engine: Engine, ann: User
) -> Iterator[Traced]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    add_traces(app, engine, provider)

    @app.get("/")
    def list_() -> list[str]:
        return list(current_session.scalars(select(User.name)))

    yield Traced(app.test_client(), exporter)
    SQLAlchemyInstrumentor().uninstrument()
    FlaskInstrumentor().uninstrument_app(app)  # type: ignore[no-untyped-call]  # as above
    provider.shutdown()


def test_a_statement_belongs_to_its_request(traced: Traced, held: Held) -> None:
    assert traced.client.get("/").get_json() == ["ann"]
    assert held.count == 0
    request, statement = traced.span("GET /"), traced.span("SELECT")
    assert statement.context.trace_id == request.context.trace_id
    assert not request.status.description


def test_a_statement_that_fails_is_traced_and_leaves_nothing_open(
    traced: Traced, engine: Engine, held: Held
) -> None:
    Base.metadata.drop_all(engine)
    traced.exporter.clear()
    assert traced.client.get("/").status_code == 500
    assert held.count == 0
    request, statement = traced.span("GET /"), traced.span("SELECT")
    assert statement.context.trace_id == request.context.trace_id
    assert "no such table" in str(statement.status.description)
    assert not request.status.is_ok
