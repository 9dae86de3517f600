"""What a person or a test wants to know of a raw mail: decoded headers, text and HTML."""

from dataclasses import dataclass
from email import message_from_bytes, policy
from email.errors import MessageError
from email.message import EmailMessage
from email.parser import BytesHeaderParser


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
    """Of the header block alone: the body may be large and nobody has asked for it yet."""
    mail = BytesHeaderParser(policy=policy.default).parsebytes(_header_block(raw))
    subject, message_id = _values(mail, "subject"), _values(mail, "message-id")
    return (subject[0] if subject else ""), (message_id[0] if message_id else None)


def _header_block(raw: bytes) -> bytes:
    end = raw.find(b"\r\n\r\n")
    return raw if end < 0 else raw[: end + 4]


def _values(mail: EmailMessage, name: str) -> list[str]:
    try:
        return [str(value).strip() for value in mail.get_all(name, [])]
    except (MessageError, ValueError, IndexError, AttributeError):
        # The standard library's header parser gives up on some malformed values; a sandbox shows them as they are.
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
