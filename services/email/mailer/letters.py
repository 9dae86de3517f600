from __future__ import annotations

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
        self._from = Address(one_line(from_name), local, domain)
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
        local, _, domain = recipient.rpartition("@")
        bodies = self.render(letter.kind, order)
        mail = EmailMessage(policy=SMTP)
        mail["From"] = self._from
        mail["To"] = Address(one_line(order.customer.name or "")[:100], local, domain)
        mail["Subject"] = one_line(letter.subject)
        mail["Date"] = format_datetime(datetime.now(UTC))
        mail["Message-ID"] = letter.message_id
        mail["Auto-Submitted"] = "auto-generated"  # RFC 3834: no vacation replies, please
        mail["X-Order-Id"] = one_line(letter.order_id)
        mail.set_content(bodies.text, cte="quoted-printable")
        mail.add_alternative(bodies.html, subtype="html", cte="base64")
        return recipient, mail.as_bytes()
