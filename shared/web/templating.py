"""Pages: jinja2 with everything escaped and nothing undefined, and the layout that all pages share."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from shared.web.health import Reading

SHARED = Path(__file__).parent / "templates"


def environment(*folders: Path) -> Environment:
    """Templates from `folders`, then the shared ones (`layout.html`)."""
    made = Environment(
        loader=FileSystemLoader([*folders, SHARED]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    made.filters["clock"] = _clock
    made.filters["ago"] = _ago
    made.filters["measured"] = _measured
    return made


def _clock(instant: datetime | None) -> str:
    return instant.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S") if instant else "-"


def _ago(instant: datetime | None) -> str:
    if instant is None:
        return "-"
    seconds = int((datetime.now(UTC) - instant).total_seconds())
    text = _span(abs(seconds))
    return f"{text} ago" if seconds >= 0 else f"in {text}"


def _measured(reading: Reading) -> str:
    if reading.value is None:
        return "-"
    if isinstance(reading.value, bool):
        return "yes" if reading.value else "no"
    return f"{reading.value} {reading.unit or ''}"


def _span(seconds: int) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"
