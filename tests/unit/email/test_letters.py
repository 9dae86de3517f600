"""What a mail says is true of its order."""

from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP

import pytest

from services.email.domain import Kind, one_line
from services.email.mailer import letters
from services.email.mailer.letters import Letters
from services.email.mailer.samples import sample


@pytest.mark.parametrize(
    ("status", "said"), [("failed", "€148.00 was declined, so"), ("expired", "€148.00 was not confirmed in time, so")]
)
def test_a_customer_who_did_not_confirm_in_time_is_not_told_that_the_bank_declined(status: str, said: str) -> None:
    letters = Letters("shop@example.com", "Shop")
    order = sample(Kind.PAYMENT_FAILED, "EUR").model_copy(update={"status": status})

    rendered = letters.render(Kind.PAYMENT_FAILED, order)

    assert said in rendered.text
    assert said in rendered.html


NAMES = (
    "",
    "Ann Example",
    "Ann O'Hara-Smith",
    "Dr. Ann Example",
    "Ann, of Example",
    'Ann "A" Example',
    "Ann (A) <a@example.com>",
    "=?utf-8?q?Ann?=",
    "Ännchen Exämple",
    "山田 太郎",
    "Ann " + "Example " * 11,
    "A" * 100,
    "ann@example.com",
    "Ann: Example;",
    "Ann \\ Example",
)
RECIPIENTS = ("ann@example.com", "a.n+n@sub.example.com", '"ann b"@example.com', "a" * 60 + "@example.com")
SUBJECTS = (
    "Your order ord_0123456789abcdefghjkmnpqrs: thank you",
    "A refund of €49.00 for your order",
    "=?utf-8?q?Your?= order",
    "Your order " + "x" * 60,
    "Your order " + "and more " * 12,
    "x",
    "",
)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("recipient", RECIPIENTS)
def test_a_recipient_is_written_as_the_standard_library_writes_it(name: str, recipient: str) -> None:
    local, _, domain = recipient.rpartition("@")
    name = one_line(name)

    written = letters._to(name, recipient)

    assert written == theirs("To", Address(name, local, domain))


@pytest.mark.parametrize("subject", SUBJECTS)
def test_a_subject_is_written_as_the_standard_library_writes_it(subject: str) -> None:
    written = letters._subject(subject)

    assert written == theirs("Subject", subject)


def theirs(name: str, value: str | Address) -> bytes:
    mail = EmailMessage(policy=SMTP)
    mail[name] = value
    return mail.as_bytes().rstrip() + b"\r\n"
