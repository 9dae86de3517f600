"""Webhooks as Stripe sends them: signed, repeated until taken, owed over a restart."""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import stripe

from tests.integration.sandboxes.programs import (
    WEBHOOK_SECRET,
    Payments,
    payments_program,
    running_payments,
)
from tests.support.servers import free_port


@dataclass
class Receiver:
    """Takes what the sandbox posts; answers 500 as long as `failing` says."""

    port: int
    failing: int = 0
    taken: asyncio.Queue[stripe.Event] = field(default_factory=asyncio.Queue)

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                headers = dict(line.split(": ", 1) for line in head.decode().lower().splitlines()[1:] if line)
                body = await reader.readexactly(int(headers["content-length"]))
                event = stripe.Webhook.construct_event(body, headers["stripe-signature"], WEBHOOK_SECRET)
                status = b"500 No" if self.failing else b"200 OK"
                if self.failing:
                    self.failing -= 1
                else:
                    self.taken.put_nowait(event)
                writer.write(b"HTTP/1.1 " + status + b"\r\ncontent-length: 0\r\n\r\n")
        except asyncio.IncompleteReadError:
            writer.close()

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        server = await asyncio.start_server(self.handle, "127.0.0.1", self.port)
        try:
            yield
        finally:
            server.close()

    async def next(self) -> stripe.Event:
        return await asyncio.wait_for(self.taken.get(), 20)


@pytest.fixture
def receiver() -> Receiver:
    return Receiver(free_port())


@pytest.fixture
async def reporting(tmp_path: Path, receiver: Receiver) -> AsyncIterator[Payments]:
    url = f"http://127.0.0.1:{receiver.port}/v1/webhooks/payments"
    program = payments_program(tmp_path, PAYMENTS_WEBHOOK_URL=url, PAYMENTS_WEBHOOK_SECRET=WEBHOOK_SECRET)
    async with running_payments(program, tmp_path) as payments:
        yield payments
    await program.end(signal.SIGTERM)


async def test_payments_failures_and_refunds_are_reported(reporting: Payments, receiver: Receiver) -> None:
    async with receiver.listening():
        intent = (await reporting.charge("ord_1")).json()["id"]
        paid = await receiver.next()
        await reporting.charge("ord_2", payment_method="pm_card_visa_chargeDeclined")
        failed = await receiver.next()
        await reporting.refunds.create_async({"payment_intent": intent, "amount": 50})
        refunded = await receiver.next()

    assert (paid.type, paid.data.object["id"]) == ("payment_intent.succeeded", intent)
    assert failed.type == "payment_intent.payment_failed"
    assert failed.data.object["last_payment_error"]["decline_code"] == "generic_decline"
    assert (refunded.type, refunded.data.object["amount_refunded"]) == ("charge.refunded", 50)
    assert refunded.data.object["payment_intent"] == intent
    assert (await reporting.events.retrieve_async(paid.id)).type == paid.type


async def test_a_receiver_that_fails_is_asked_again(reporting: Payments, receiver: Receiver) -> None:
    receiver.failing = 2

    async with receiver.listening():
        await reporting.charge("ord_1")
        event = await receiver.next()

    assert event.data.object["metadata"]["order_id"] == "ord_1"


async def test_what_was_owed_at_kill_9_is_sent_afterwards(reporting: Payments, receiver: Receiver) -> None:
    await reporting.charge("ord_1")
    await reporting.program.restart(signal.SIGKILL)

    async with receiver.listening():
        event = await receiver.next()

    assert event.data.object["metadata"]["order_id"] == "ord_1"


async def test_what_was_delivered_is_not_sent_again(reporting: Payments, receiver: Receiver) -> None:
    async with receiver.listening():
        await reporting.charge("ord_1")
        await receiver.next()
        await reporting.program.restart(signal.SIGTERM)
        await reporting.charge("ord_2")
        event = await receiver.next()

    assert event.data.object["metadata"]["order_id"] == "ord_2"
    assert receiver.taken.empty()
