"""All that happened: intents, refunds, events, answered keys; in memory and, for ever, in the journal."""

import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from deploy.local.payments import intents, refunds
from deploy.local.payments.errors import Missing, encode
from deploy.local.payments.events import Event, EventType, new_event
from deploy.local.payments.idempotency import Claim, Keys
from deploy.local.payments.intents import Intent
from deploy.local.payments.journal import Journal, Line
from deploy.local.payments.refunds import Refund


class Answer(NamedTuple):
    status: int
    body: bytes
    replayed: bool = False


class Ledger:
    """Every `record_…` writes the journal first and memory afterwards: a failed write has changed nothing."""

    def __init__(self, journal: Journal, clock: Callable[[], float] = time.time) -> None:
        self.clock = clock
        self.keys = Keys()
        self.intents: list[Intent] = []
        self.refunds: list[Refund] = []
        self.events: list[Event] = []
        self.on_event: Callable[[Event], None] | None = None
        self._journal = journal
        self._intent_at: dict[str, int] = {}
        self._refund_at: dict[str, int] = {}
        self._event_at: dict[str, int] = {}
        self._by_order: dict[str, list[str]] = {}

    # --- reading

    def intent(self, intent_id: str, param: str = "intent") -> Intent:
        position = self._intent_at.get(intent_id)
        if position is None:
            raise Missing("payment_intent", intent_id, param)
        return self.intents[position]

    def intent_position(self, intent_id: str) -> int:
        return self.intent(intent_id, "starting_after").position

    def refund(self, refund_id: str) -> Refund:
        return self.refunds[self.refund_position(refund_id)]

    def refund_position(self, refund_id: str) -> int:
        position = self._refund_at.get(refund_id)
        if position is None:
            raise Missing("refund", refund_id)
        return position

    def event(self, event_id: str) -> Event:
        return self.events[self.event_position(event_id)]

    def event_position(self, event_id: str) -> int:
        position = self._event_at.get(event_id)
        if position is None:
            raise Missing("event", event_id)
        return position

    def of_order(self, order_id: str) -> Iterator[Intent]:
        """Newest first."""
        return (self.intent(intent_id) for intent_id in reversed(self._by_order.get(order_id, [])))

    def event_object(self, event: Event) -> bytes:
        return self._journal.read(event.object)

    def stored_answer(self, claim: Claim) -> Answer | None:
        """What this key was answered before; None means the key is now held by the caller."""
        stored = self.keys.claim(claim, self.clock())
        if stored is None:
            return None
        return Answer(stored.status, self._journal.read(stored.answer), replayed=True)

    # --- writing

    def record_intent(self, intent: Intent, event_type: EventType | None, claim: Claim | None) -> Answer:
        rendered = encode(intents.render(intent)).encode()
        answer = Answer(200, rendered)
        if event_type == "payment_intent.payment_failed":
            answer = Answer(402, intents.card_error_body(intent, rendered))
        event = new_event(event_type, intent.id, self.clock(), claim)
        line = self._write("intent", rendered, answer, event, claim)
        if intent.position < 0 and claim is not None:
            intent.idempotency_key = claim.key
        self._put_intent(intent)
        self._finish(line, answer.status, event, claim)
        return answer

    def record_refund(self, intent: Intent, refund: Refund, claim: Claim | None) -> Answer:
        refunded = intent.refunded + refund.amount
        charge = encode(intents.render_charge(intent, refunded)).encode()
        answer = Answer(200, encode(refunds.render(refund)).encode())
        event = new_event("charge.refunded", refund.id, self.clock(), claim)
        line = self._write("refund", charge, answer, event, claim)
        self._put_refund(refund)
        self._finish(line, answer.status, event, claim)
        return answer

    def forget_keys(self) -> int:
        """As if 24 hours had passed since the last request: every key is free again."""
        self._journal.append(encode({"op": "forget", "at": int(self.clock()), "ol": 4, "bl": 4}), b"null", b"null")
        return self.keys.forget_all()

    def record_delivered(self, event_ids: list[str]) -> None:
        ids = encode(event_ids).encode()
        head = {"op": "delivered", "at": int(self.clock()), "ol": len(ids), "bl": 4}
        self._journal.append(encode(head), ids, b"null")

    def _write(self, op: str, obj: bytes, answer: Answer, event: Event | None, claim: Claim | None) -> Line:
        body = b"null" if answer.body is obj else answer.body
        head: dict[str, Any] = {"op": op, "at": int(self.clock()), "status": answer.status}
        if claim is not None:
            head.update(key=claim.key, path=claim.path, fp=claim.fingerprint)
        if event is not None:
            head.update(event=event.id, type=event.type, hook=self.on_event is not None)
        head.update(ol=len(obj), bl=len(body))
        line = self._journal.append(encode(head), obj, body)
        return Line(line.object, line.object) if answer.body is obj else line

    def _finish(self, line: Line, status: int, event: Event | None, claim: Claim | None) -> None:
        if claim is not None:
            self.keys.store(claim, status, line.body, int(self.clock()))
        if event is not None:
            stored = event._replace(object=line.object)
            self._put_event(stored)
            if self.on_event is not None:
                self.on_event(stored)

    def _put_intent(self, intent: Intent) -> None:
        if intent.position >= 0:
            self.intents[intent.position] = intent
            return
        intent.position = len(self.intents)
        self._intent_at[intent.id] = intent.position
        self.intents.append(intent)
        order_id = intent.meta("order_id")
        if order_id is not None:
            self._by_order.setdefault(order_id, []).append(intent.id)

    def _put_refund(self, refund: Refund) -> None:
        self._refund_at[refund.id] = len(self.refunds)
        self.refunds.append(refund)
        self.intent(refund.payment_intent).refunded += refund.amount

    def _put_event(self, event: Event) -> None:
        self._event_at[event.id] = len(self.events)
        self.events.append(event)

    # --- starting again

    def replay(self) -> list[Event]:
        """Rebuild everything from the journal; the answer is the events that a webhook still owes."""
        owed: dict[str, None] = {}
        for record, line in self._journal.replay():
            self._replay_one(record, line)
            if record.get("hook"):
                owed[record["event"]] = None
            elif record["op"] == "delivered":
                for event_id in record["object"]:
                    owed.pop(event_id, None)
        return [self.event(event_id) for event_id in owed]

    def _replay_one(self, record: dict[str, Any], line: Line) -> None:
        if record["op"] == "intent":
            self._replay_intent(record)
            self._replay_rest(record, line)
        elif record["op"] == "refund":
            self._put_refund(refunds.restore(record["body"]))
            self._replay_rest(record, line)
        elif record["op"] == "forget":
            self.keys.forget_all()

    def _replay_intent(self, record: dict[str, Any]) -> None:
        intent = intents.restore(record["object"])
        position = self._intent_at.get(intent.id)
        if position is None:
            intent.idempotency_key = record.get("key")
        else:
            before = self.intents[position]
            intent.position, intent.idempotency_key = position, before.idempotency_key
            intent.refunded = before.refunded
        self._put_intent(intent)

    def _replay_rest(self, record: dict[str, Any], line: Line) -> None:
        at: int = record["at"]
        if "key" in record:
            claim = Claim(record["key"], record["path"], record["fp"])
            answer = line.object if record["body"] is None else line.body
            self.keys.store(claim, record["status"], answer, at)
        if "event" in record:
            subject = record["body"]["id"] if record["op"] == "refund" else record["object"]["id"]
            self._put_event(Event(record["event"], record["type"], subject, at, record.get("key"), line.object))
