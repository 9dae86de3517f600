"""The mails: one .eml file each and an index on disk; look-ups by recipient and Message-ID from memory."""

import fcntl
import json
import os
import shutil
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from deploy.local.mail.parts import read_subject_and_id

MAILS_PER_FOLDER = 1_000


class StoreError(Exception):
    """The store cannot be used; the text says why and what to do."""


@dataclass(frozen=True, slots=True)
class Mail:
    """`sender` and `recipients` are the envelope's: who the server was told, not what the headers claim."""

    number: int
    sender: str
    recipients: tuple[str, ...]
    subject: str
    message_id: str | None
    received_at: str

    @property
    def id(self) -> str:
        return f"msg_{self.number:08d}"


FIELDS = tuple(Mail.__dataclass_fields__)


class Store:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._index_path = folder / "index.jsonl"
        self._index = os.open(self._index_path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._index, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._index)
            raise StoreError(f"{folder} is in use by another mail sandbox: stop it first") from error
        self._next = 1
        self._folder_made: Path | None = None
        self._forget()
        self._load()

    def __len__(self) -> int:
        return len(self._mails)

    def add(self, sender: str, recipients: Sequence[str], raw: bytes) -> Mail:
        """On disk when this returns: the mail first, then its index line, so that no line lacks its mail."""
        subject, message_id = read_subject_and_id(raw)
        received_at = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        mail = Mail(self._next, sender, tuple(recipients), subject, message_id, received_at)
        path = self.path(mail)
        if path.parent != self._folder_made:
            path.parent.mkdir(exist_ok=True)
            self._folder_made = path.parent
        path.write_bytes(raw)
        self._write_index({name: getattr(mail, name) for name in FIELDS})
        self._remember(mail)
        return mail

    def get(self, mail_id: str) -> Mail | None:
        number = mail_id.removeprefix("msg_")
        if not (mail_id.startswith("msg_") and number.isascii() and number.isdigit()):
            return None
        at = bisect_left(self._mails, int(number), key=_number)
        found = self._mails[at] if at < len(self._mails) else None
        return found if found is not None and found.id == mail_id else None

    def find(self, to: str | None, message_id: str | None, limit: int, before: Mail | None) -> tuple[list[Mail], bool]:
        """Newest first, from the mail before `before`, and whether there are more."""
        mails = self._matching(to, message_id)
        end = len(mails) if before is None else bisect_left(mails, before.number, key=_number)
        page = [mails[at] for at in range(end - 1, max(end - limit, 0) - 1, -1)]
        return page, end > limit

    def count(self, to: str | None, message_id: str | None) -> int:
        return len(self._matching(to, message_id))

    def read(self, mail: Mail) -> bytes:
        return self.path(mail).read_bytes()

    def path(self, mail: Mail) -> Path:
        return self.folder / f"{mail.number // MAILS_PER_FOLDER:05d}" / f"{mail.id}.eml"

    def clear(self) -> int:
        """Remove everything; numbers go on, so that an id never comes back as another mail."""
        count = len(self._mails)
        os.ftruncate(self._index, 0)
        self._write_index({"next": self._next})
        for folder in {self.path(mail).parent for mail in self._mails}:
            shutil.rmtree(folder)
        self._folder_made = None
        self._forget()
        return count

    def close(self) -> None:
        os.close(self._index)

    def _matching(self, to: str | None, message_id: str | None) -> list[Mail]:
        if message_id is None:
            return self._mails if to is None else self._by_recipient.get(to.lower(), [])
        found = self._by_message_id.get(message_id, [])
        if to is None:
            return found
        return [mail for mail in found if to.lower() in map(str.lower, mail.recipients)]

    def _forget(self) -> None:
        self._mails: list[Mail] = []
        self._by_recipient: dict[str, list[Mail]] = {}
        self._by_message_id: dict[str, list[Mail]] = {}

    def _remember(self, mail: Mail) -> None:
        self._next = mail.number + 1
        self._mails.append(mail)
        for recipient in {recipient.lower() for recipient in mail.recipients}:
            self._by_recipient.setdefault(recipient, []).append(mail)
        if mail.message_id is not None:
            self._by_message_id.setdefault(mail.message_id, []).append(mail)

    def _write_index(self, line: dict[str, Any]) -> None:
        os.write(self._index, json.dumps(line, separators=(",", ":")).encode() + b"\n")

    def _load(self) -> None:
        good = 0
        with self._index_path.open("rb") as index:
            for raw in index:
                if not raw.endswith(b"\n"):
                    break  # torn by a kill while writing: that mail was never accepted
                self._load_line(json.loads(raw))
                good += len(raw)
        os.ftruncate(self._index, good)

    def _load_line(self, line: dict[str, Any]) -> None:
        if "next" in line:
            self._next = line["next"]
        else:
            self._remember(Mail(**{**line, "recipients": tuple(line["recipients"])}))


def _number(mail: Mail) -> int:
    return mail.number
