"""The end of a 3-D Secure challenge, whether a person, a page or a test decides it."""

from deploy.local.payments import intents
from deploy.local.payments.intents import Intent
from deploy.local.payments.ledger import Ledger
from deploy.local.payments.operations import OUTCOMES


def finish_challenge(ledger: Ledger, intent_id: str, *, passed: bool) -> Intent:
    """Raises InvalidRequest if the intent does not wait for authentication."""
    intent = intents.evolve(ledger.intent(intent_id))
    intents.authenticate(intent, passed=passed)
    ledger.record_intent(intent, OUTCOMES[intent.status], None)
    return intent
