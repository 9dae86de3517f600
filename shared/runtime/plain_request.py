"""Requests so plain that their end and the end of their answer are certain without a parser."""

from __future__ import annotations

import re
from dataclasses import dataclass

_HEADERS = re.compile(rb"(?:[!#-'*+.^-z|~0-9A-Z-]+:[^\r\n\x00]*\r\n)+\r\n")
# What makes more of a request than its bytes up to the Content-Length, or of its answer.
_SPECIAL = re.compile(
    rb"\n(?:transfer-encoding|expect|upgrade|connection:(?! ?keep-alive\r)|content-length:(?! ?\d{1,7}\r))",
    re.IGNORECASE,
)
_LENGTH = re.compile(rb"\ncontent-length: ?(\d{1,7})\r", re.IGNORECASE)
_REQUEST_ID = re.compile(rb"\nx-request-id: ?([^\r]*)\r", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class PlainRequest:
    """What there is to know about one before it is answered unread."""

    head_bytes: int
    headers: int
    request_id: bytes | None

    @classmethod
    def found_in(cls, data: bytes, first_line: bytes) -> PlainRequest | None:
        """The request when `data` begins with `first_line`, is the whole of it and nothing else; None in any doubt."""
        begin = len(first_line)
        match = _HEADERS.match(data, begin) if data.startswith(first_line) else None
        if match is None:
            return None
        end = match.end()
        # From the line break before the first header, which `first_line` ends with.
        if _SPECIAL.search(data, begin - 1, end):
            return None
        lengths = _LENGTH.findall(data, begin - 1, end)
        if len(lengths) != 1 or end + int(lengths[0]) != len(data):
            return None
        sent = _REQUEST_ID.search(data, begin - 1, end)
        return cls(end, data.count(b"\n", begin, end) - 1, sent[1] if sent else None)
