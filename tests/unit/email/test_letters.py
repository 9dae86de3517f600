"""What a mail says is true of its order."""

import pytest

from services.email.domain import Kind
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
