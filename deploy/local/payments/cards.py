"""Stripe's documented test payment methods and what each of them does."""

from dataclasses import dataclass
from typing import Literal

from deploy.local.payments.errors import InvalidRequest

PAN_DIGITS = range(12, 20)


@dataclass(frozen=True)
class Decline:
    """Why a card was declined; `decline_code` is None where no issuer was asked."""

    code: str
    decline_code: str | None
    message: str


@dataclass(frozen=True)
class Card:
    """What a test card does; `challenge` is when 3-D Secure is asked for."""

    brand: str
    decline: Decline | None = None
    challenge: Literal["never", "always"] = "never"


def _declined(decline_code: str, message: str = "Your card was declined.") -> Decline:
    return Decline("card_declined", decline_code, message)


GENERIC = _declined("generic_decline")
INSUFFICIENT_FUNDS = _declined("insufficient_funds", "Your card has insufficient funds.")
LOST = _declined("lost_card")
STOLEN = _declined("stolen_card")
FRAUDULENT = _declined("fraudulent")
VELOCITY = _declined(
    "card_velocity_exceeded",
    "Your card was declined for making repeated attempts too frequently or exceeding its amount limit.",
)
EXPIRED = Decline("expired_card", "expired_card", "Your card has expired.")
INCORRECT_CVC = Decline("incorrect_cvc", "incorrect_cvc", "Your card's security code is incorrect.")
PROCESSING_ERROR = Decline(
    "processing_error",
    "processing_error",
    "An error occurred while processing your card. Try again in a little bit.",
)
AUTHENTICATION_REQUIRED = Decline(
    "authentication_required",
    "authentication_required",
    "Your card was declined. This transaction requires authentication.",
)
AUTHENTICATION_FAILED = Decline(
    "payment_intent_authentication_failure",
    None,
    "We are unable to authenticate your payment method. Please choose a different one and try again.",
)

# Today's documentation spells some declines with `visa` and some without, older pages spell all without:
# both spellings name the same card here.
_DECLINES = {
    "chargeDeclined": GENERIC,
    "chargeDeclinedInsufficientFunds": INSUFFICIENT_FUNDS,
    "chargeDeclinedLostCard": LOST,
    "chargeDeclinedStolenCard": STOLEN,
    "chargeDeclinedFraudulent": FRAUDULENT,
    "chargeDeclinedExpiredCard": EXPIRED,
    "chargeDeclinedIncorrectCvc": INCORRECT_CVC,
    "chargeDeclinedProcessingError": PROCESSING_ERROR,
    "chargeDeclinedVelocityLimitExceeded": VELOCITY,
}
_BRANDS = {
    "pm_card_visa": "visa",
    "pm_card_visa_debit": "visa",
    "pm_card_mastercard": "mastercard",
    "pm_card_mastercard_debit": "mastercard",
    "pm_card_mastercard_prepaid": "mastercard",
    "pm_card_amex": "amex",
    "pm_card_discover": "discover",
    "pm_card_diners": "diners",
    "pm_card_jcb": "jcb",
    "pm_card_unionpay": "unionpay",
}

CARDS: dict[str, Card] = {
    **{name: Card(brand) for name, brand in _BRANDS.items()},
    **{f"pm_card_{name}": Card("visa", decline) for name, decline in _DECLINES.items()},
    **{f"pm_card_visa_{name}": Card("visa", decline) for name, decline in _DECLINES.items()},
    "pm_card_authenticationRequired": Card("visa", challenge="always"),
    "pm_card_threeDSecureRequired": Card("visa", challenge="always"),
    "pm_card_threeDSecure2Required": Card("visa", challenge="always"),
    "pm_card_threeDSecureRequiredChargeDeclined": Card("visa", GENERIC, challenge="always"),
    "pm_card_threeDSecureOptional": Card("visa"),
}


def find_card(payment_method: str) -> Card:
    card = CARDS.get(payment_method)
    if card is None:
        refuse_number(payment_method)
        message = f"No such PaymentMethod: '{payment_method}'"
        raise InvalidRequest(message, code="resource_missing", param="payment_method")
    return card


def refuse_number(value: str) -> None:
    """Card numbers never belong here, so one is refused without being repeated in the answer."""
    digits = value.replace(" ", "").replace("-", "")
    if digits.isdigit() and len(digits) in PAN_DIGITS:
        raise InvalidRequest(
            "Sending card numbers directly is unsafe: send a test payment method such as pm_card_visa.",
            param="payment_method",
        )
