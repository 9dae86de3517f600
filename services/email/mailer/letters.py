from __future__ import annotations

import re
from binascii import b2a_qp
from dataclasses import dataclass
from datetime import UTC, datetime
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime
from pathlib import Path
from typing import TYPE_CHECKING

import css_inline
from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from services.email.domain import KINDS, Kind, money, one_line, subject_of
from services.email.mailer.addresses import deliverable
from shared.contracts.orders import EVENTS, OrderState

if TYPE_CHECKING:
    from services.email.domain import Letter

TEMPLATES = Path(__file__).parents[1] / "templates"
EVENT_OF = {kind: event for event, kind in KINDS.items()}


@dataclass(frozen=True, slots=True)
class Rendered:
    """A mail's two bodies."""

    html: str
    text: str


class Letters:
    """Makes mails out of orders. What customers wrote is a value in a template, never its source."""

    def __init__(self, from_address: str, from_name: str) -> None:
        """Load the templates, so that a broken one stops the start and not a mail."""
        local, _, domain = from_address.rpartition("@")
        self._from = _header("From", Address(one_line(from_name), local, domain))
        self._environment = Environment(
            loader=FileSystemLoader(TEMPLATES),
            autoescape=select_autoescape(["html"]),
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            auto_reload=False,
        )
        self._environment.filters["line"] = one_line
        self._inliner = css_inline.CSSInliner(load_remote_stylesheets=False)
        for kind in Kind:
            self._environment.get_template(f"{kind}.html")
            self._environment.get_template(f"{kind}.txt")

    def render(self, kind: Kind, order: OrderState) -> Rendered:
        """Both bodies; mail programs drop style sheets, so the styles move into the elements."""

        def amount(minor: int) -> str:
            return money(minor, order.currency)

        values = {"order": order, "money": amount, "subject": subject_of(kind, order)}
        html = self._environment.get_template(f"{kind}.html").render(values)
        text = self._environment.get_template(f"{kind}.txt").render(values)
        return Rendered(self._inliner.inline(html), text)

    def compose(self, letter: Letter) -> tuple[str, bytes]:
        """The envelope's recipient and the mail itself. Raises ValueError when it cannot be made."""
        order = EVENTS[EVENT_OF[letter.kind]].model_validate_json(letter.content)
        recipient = deliverable(letter.recipient)
        written = _to(one_line(order.customer.name or "")[:100], recipient) + _subject(one_line(letter.subject))
        fixed = f"Date: {format_datetime(datetime.now(UTC))}\r\nMessage-ID: {letter.message_id}\r\n"
        body = _body(self.render(letter.kind, order))
        return recipient, b"".join((self._from, written, fixed.encode("ascii"), body))


# EmailMessage takes two milliseconds for a mail with two bodies, most of it for headers. It writes those in which
# something has to be quoted, encoded or folded; the rest is put together here.
# A name of atoms, or none, before an address that needs no quotes (RFC 5322, 3.2.3 and 3.4), all on one line.
_ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
_ADDRESS = rf"{_ATOM}(?:\.{_ATOM})*@[A-Za-z0-9.-]+"
_PLAIN_TO = re.compile(rf"(?=.{{1,74}}$)(?:(?:{_ATOM} )+<{_ADDRESS}>|{_ADDRESS})")
_PLAIN_SUBJECT = re.compile(r"[!-~](?:[ -~]{0,66}[!-~])?")


def _to(name: str, address: str) -> bytes:
    plain = f"{name} <{address}>" if name else address
    if _PLAIN_TO.fullmatch(plain) and "=?" not in plain:
        return f"To: {plain}\r\n".encode("ascii")
    local, _, domain = address.rpartition("@")
    return _header("To", Address(name, local, domain))


def _subject(subject: str) -> bytes:
    if _PLAIN_SUBJECT.fullmatch(subject) and "=?" not in subject:  # which begins what is encoded (RFC 2047, 2)
        return f"Subject: {subject}\r\n".encode("ascii")
    return _header("Subject", subject)


def _header(name: str, value: str | Address) -> bytes:
    head = EmailMessage(policy=SMTP)
    head[name] = value
    return head.as_bytes().rstrip() + b"\r\n"


# "=_" cannot occur in quoted-printable text, so the boundary is never part of a body (RFC 2045, 6.7).
_BOUNDARY = "=_orderstream"
_START = (
    "Auto-Submitted: auto-generated\r\n"  # RFC 3834: no vacation replies, please
    "MIME-Version: 1.0\r\n"
    f'Content-Type: multipart/alternative; boundary="{_BOUNDARY}"\r\n\r\n'
)
_PART = (
    f'--{_BOUNDARY}\r\nContent-Type: text/{{}}; charset="utf-8"\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n'
)
_TEXT, _HTML, _END = (
    part.encode("ascii") for part in (_START + _PART.format("plain"), _PART.format("html"), f"--{_BOUNDARY}--\r\n")
)


def _body(bodies: Rendered) -> bytes:
    return b"".join((_TEXT, _quoted(bodies.text), b"\r\n", _HTML, _quoted(bodies.html), b"\r\n", _END))


def _quoted(text: str) -> bytes:
    lines = text.encode("utf-8", "replace").replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    return b2a_qp(lines, istext=True).replace(b"\n", b"\r\n")
