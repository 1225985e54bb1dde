"""The application of async_ledger.py for ASGI servers, by two adapters."""

from __future__ import annotations

from a2wsgi import WSGIMiddleware
from asgiref.wsgi import WsgiToAsgi

from .async_ledger import app

by_asgiref = WsgiToAsgi(app)  # type: ignore[no-untyped-call]  # asgiref has no types for it
by_a2wsgi = WSGIMiddleware(app)  # type: ignore[arg-type]  # its own spelling of WSGI's types
