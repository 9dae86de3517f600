"""The append-only file under the ledger: one JSON line per change, written before the change is answered."""

import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

OBJECT = b',"object":'
BODY = b',"body":'
END = b"}\n"


class JournalError(Exception):
    """The ledger cannot be used; the text says why and what to do."""


class Span(NamedTuple):
    """Where a JSON text stands in the file: answers and event payloads are read from there, not kept."""

    offset: int
    length: int


class Line(NamedTuple):
    object: Span
    body: Span


class Journal:
    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._file)
            raise JournalError(f"{path} is in use by another payment sandbox: stop it first") from error
        self._end = os.fstat(self._file).st_size

    def append(self, head: str, obj: bytes, body: bytes) -> Line:
        """Write one line (`head` is a JSON object), unbuffered: it survives the death of this process."""
        prefix = head[:-1].encode() + OBJECT
        line = b"".join((prefix, obj, BODY, body, END))
        start = self._end
        self._write(line)
        object_at = start + len(prefix)
        return Line(Span(object_at, len(obj)), Span(object_at + len(obj) + len(BODY), len(body)))

    def _write(self, line: bytes) -> None:
        written = 0
        try:
            while written < len(line):
                written += os.write(self._file, line[written:] if written else line)
        except OSError:
            # Disk full: a half-written line would spoil every line after it.
            os.ftruncate(self._file, self._end)
            raise
        self._end += len(line)

    def read(self, span: Span) -> bytes:
        return os.pread(self._file, span.length, span.offset)

    def replay(self) -> Iterator[tuple[dict[str, Any], Line]]:
        """Every line from the beginning; a torn last line (killed while writing) is cut off."""
        offset = 0
        with self.path.open("rb") as file:
            for number, raw in enumerate(file, 1):
                record = self._parse(raw, number)
                if record is None:
                    break
                yield record, _locate(record, offset, len(raw))
                offset += len(raw)
        os.ftruncate(self._file, offset)
        self._end = offset

    def _parse(self, raw: bytes, number: int) -> dict[str, Any] | None:
        if not raw.endswith(b"\n"):
            return None
        try:
            record: dict[str, Any] = json.loads(raw)
        except ValueError as error:
            raise JournalError(f"{self.path} line {number} is not JSON: restore or remove the file") from error
        return record

    def close(self) -> None:
        os.close(self._file)


def _locate(record: dict[str, Any], offset: int, size: int) -> Line:
    body_at = offset + size - len(END) - record["bl"]
    object_at = body_at - len(BODY) - record["ol"]
    return Line(Span(object_at, record["ol"]), Span(body_at, record["bl"]))
