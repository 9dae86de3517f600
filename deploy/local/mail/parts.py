"""What a person or a test wants to know of a raw mail: decoded headers, text and HTML."""

import re
from dataclasses import dataclass
from email import message_from_bytes, policy
from email.errors import MessageError
from email.header import decode_header, make_header
from email.message import EmailMessage

HEADERS = {
    name: re.compile(rb"(?:\A|(?<=\r\n))%s:((?:[^\r]|\r\n[ \t])*)" % name.encode(), re.IGNORECASE)
    for name in ("Subject", "Message-ID")
}


@dataclass(frozen=True)
class Parts:
    headers: dict[str, str]
    text: str | None
    html: str | None


def read_parts(raw: bytes) -> Parts:
    mail = message_from_bytes(raw, policy=policy.default)
    headers: dict[str, str] = {}
    for name in mail.keys():  # noqa: SIM118 - a mail's keys() repeats a name for each of its headers
        headers.setdefault(name, ", ".join(_values(mail, name)))
    return Parts(headers, _content(mail, "plain"), _content(mail, "html"))


def read_subject_and_id(raw: bytes) -> tuple[str, str | None]:
    """From the raw header lines: a full parse would take longer than everything else done on receipt."""
    subject = _raw_header(raw, "Subject") or ""
    return (_decode(subject) if "=?" in subject else subject), _raw_header(raw, "Message-ID")


def _raw_header(raw: bytes, name: str) -> str | None:
    end = raw.find(b"\r\n\r\n")
    found = HEADERS[name].search(raw, 0, len(raw) if end < 0 else end)
    return None if found is None else " ".join(found[1].decode("utf-8", "replace").split())


def _decode(value: str) -> str:
    try:
        return str(make_header(decode_header(value)))
    except (
        MessageError,
        LookupError,
        ValueError,
    ):  # broken encoded words or an unknown charset: shown as they are
        return value


def _values(mail: EmailMessage, name: str) -> list[str]:
    try:
        return [str(value).strip() for value in mail.get_all(name, [])]
    except (MessageError, ValueError, IndexError, AttributeError):
        # The standard library's parser gives up on some malformed values: they are shown as they are.
        return [str(value).strip() for key, value in mail.raw_items() if key.lower() == name.lower()]


def _content(mail: EmailMessage, kind: str) -> str | None:
    body = mail.get_body(preferencelist=(kind,))
    if body is None:
        return None
    try:
        return str(body.get_content(errors="replace"))
    except (LookupError, ValueError, MessageError):  # an unknown charset or broken encoding
        payload = body.get_payload(decode=True)
        return payload.decode("latin-1") if isinstance(payload, bytes) else str(payload)
