"""The envelope of every event: CloudEvents 1.0 in structured JSON.

https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/spec.md
"""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache
from typing import Annotated, Any, Final, Literal
from uuid import UUID

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, PlainSerializer, ValidationError

SPEC_VERSION: Final = "1.0"
DATA_CONTENT_TYPE: Final = "application/json"


def rfc3339(instant: datetime) -> str:
    """The instant as RFC 3339 UTC with microseconds, such as `2026-01-31T09:15:00.123456Z`."""
    return instant.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


# CloudEvents allows no control characters, and an attribute with a NUL could not be stored as it came.
_Printable = Field(min_length=1, pattern=r"^[^\x00-\x1f\x7f-\x9f]*$")
Word = Annotated[str, _Printable, Field(max_length=100)]
Reference = Annotated[str, _Printable, Field(max_length=200)]
Instant = Annotated[AwareDatetime, PlainSerializer(rfc3339, return_type=str, when_used="json")]


class Attributes(BaseModel):
    """What every event says of itself. Unknown attributes are ignored, so newer writers break no reader."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    specversion: Literal["1.0"] = SPEC_VERSION
    id: UUID
    source: Reference
    type: Word
    subject: Word = Field(description="the order's id")
    time: Instant
    datacontenttype: Literal["application/json"] = DATA_CONTENT_TYPE
    dataschema: Reference
    orderversion: int = Field(
        ge=1,
        le=2**31 - 1,  # CloudEvents' integers have 32 bits, and so has the ledger's column
        description="1, 2, 3 … per order: a reader applies only what is newer",
    )
    traceparent: str | None = None

    @property
    def major(self) -> int:
        """The major version of the data, from the end of `dataschema` (`…/order.completed/1`)."""
        return _major_of(self.dataschema)


@lru_cache(maxsize=256)
def _major_of(dataschema: str) -> int:
    tail = dataschema.rsplit("/", 1)[-1].split(".", 1)[0]
    return int(tail) if tail.isdecimal() else 0


class Envelope(Attributes):
    """One event as it travels, whatever its data are."""

    data: dict[str, Any]


class UnreadableEvent(ValueError):
    """The bytes are not an event: not JSON, not an object, or a required attribute is missing or wrong."""


def decode(raw: bytes | str) -> Envelope:
    """Read an event from its bytes; raises `UnreadableEvent` with one line that says what is wrong."""
    try:
        return Envelope.model_validate_json(raw)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "event"
        raise UnreadableEvent(f"{place}: {first['msg']}") from error
    except RecursionError as error:
        raise UnreadableEvent("event: nested too deeply") from error


def encode(event: Envelope) -> str:
    """The bytes on the wire, compact; absent attributes are left out."""
    return event.model_dump_json(exclude_none=True)
