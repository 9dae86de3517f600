"""Logs: structlog for our own lines and everybody else's, JSON in production, colours on a terminal."""

from __future__ import annotations

import logging
import re
import sys
from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    from structlog.typing import EventDict, Processor, WrappedLogger

_SECRET_NAMES = re.compile(r"password|secret|token|authorization|api_key|payment_method|card|email", re.IGNORECASE)
_DIGITS = re.compile(r"\b\d(?:[ -]?\d){12,18}\b")
_CREDENTIALS = re.compile(r"(?<=://)[^/\s]+@")
_KEYS = re.compile(r"\b(?:osk|sk_test|sk_live|rk_live|whsec)_[A-Za-z0-9_-]{16,}")  # ours and the payment provider's


def configure(service: str, *, form: str, level: str) -> None:
    """Send every log line of the process to stderr in the chosen form (`json` or `console`)."""
    structlog.contextvars.bind_contextvars()
    before: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _name(service),
        structlog.processors.format_exc_info,  # before `redact`: a stack trace can hold a secret like any text
        redact,
    ]
    structlog.configure(
        processors=[*before, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(level),
        cache_logger_on_first_use=True,
    )
    renderer: Processor = (
        structlog.processors.JSONRenderer()
        if form == "json"
        else structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=before, processor=renderer))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    for noisy in ("httpx", "httpcore", "asyncio", "uvicorn.error", "mail.log", "alembic"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def redact(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Blank what must not reach a log: values under telling names, card numbers, keys, credentials in URLs."""
    for name, value in event.items():
        event[name] = _blanked(name, value)
    return event


def _blanked(name: object, value: object) -> object:
    if isinstance(name, str) and _SECRET_NAMES.search(name):
        return "[redacted]"
    if isinstance(value, str):
        return _CREDENTIALS.sub("[redacted]@", _KEYS.sub("[redacted]", _DIGITS.sub("[redacted]", value)))
    if isinstance(value, dict):
        return {inner: _blanked(inner, one) for inner, one in value.items()}
    if isinstance(value, list | tuple):
        blanked = [_blanked(None, one) for one in value]
        return blanked if isinstance(value, list) else tuple(blanked)
    return value


def _name(service: str) -> Processor:
    def add(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
        event.setdefault("service", service)
        return event

    return add
