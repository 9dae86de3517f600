"""Refund: intent → provider → outcome, with no transaction and no pooled connection held while the provider is asked.

A cancellation is a refund of all that is left, after which the order is over and its stock is back. While one refund of
an order is open, a cancellation is told to come again: what is left depends on how that one ends.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

import structlog
from typing_extensions import override

from services.checkout.commands import refund_answers
from services.checkout.commands.answers import Answer
from services.checkout.commands.once import Once
from services.checkout.commands.refund_book import Begun, GiveBack, RefundBook, Settled, SettleRefund
from services.checkout.domain import Order, Refund, RefundKind, RefundStatus
from services.checkout.payments import port
from services.checkout.store import orders, refunds
from shared.runtime import metrics
from shared.runtime.failpoints import reach
from shared.runtime.supervision import Loop

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

    from services.checkout.commands.place_order import KeyTaken
    from services.checkout.payments.port import Captured, PaymentProvider
    from services.checkout.store.idempotency import StoredAnswer
    from shared.runtime.clock import Clock
    from shared.runtime.db import Database

log = structlog.get_logger()

Result = TypeVar("Result")

AT_ONCE = 3  # transactions: those of one order wait for each other, and must not take every connection along


class Refunds(Loop):
    """Gives money back. As a loop it only keeps the process alive until the refunds under way are settled."""

    idle_s = 1.0

    def __init__(
        self,
        db: Database,
        book: RefundBook,
        provider: PaymentProvider,
        clock: Clock,
        after_commit: Callable[[], None] = lambda: None,
    ) -> None:
        """`after_commit` is called when there may be a new event."""
        super().__init__("refunds")
        self._db = db
        self._book = book
        self._provider = provider
        self._clock = clock
        self._after_commit = after_commit
        self._turn = asyncio.Semaphore(AT_ONCE)
        self._once: Once[GiveBack] = Once(db, clock, self._give_back, self._repeat)

    @override
    async def run_once(self) -> int:
        """Nothing to do between requests."""
        return 0

    @override
    async def finish(self) -> None:
        await self._once.finish()

    async def give_back(self, command: GiveBack) -> Answer:
        """Refund or cancel, or repeat the answer that the key got before."""
        return await self._once.answer(command)

    async def reverse(self, order: Order, captured: Captured) -> bool:
        """Give a payment back that turned out captured after its order had failed or expired.

        Once per order and payment, however often this is called; True for the call that came first. The money is sent
        by the recovery loop, and an `order.refunded` event tells of it.
        """
        now = self._clock.now()
        begun = await self._transact(
            lambda connection: self._book.begin_reversal(connection, order.id, captured.reference, now)
        )
        if begun:
            log.error("late payment, giving it back", order_id=order.id, payment=captured.reference)
        return begun

    async def settle(self, command: SettleRefund) -> Settled | None:
        """Record what came of a refund; None when somebody else has taken it over."""
        settled = await self._transact(lambda connection: self._book.settle(connection, command))
        if settled:
            _count(settled.refund)
            if settled.refund.status is RefundStatus.SUCCEEDED:
                self._after_commit()
        return settled

    async def _give_back(self, command: GiveBack) -> Answer | KeyTaken:
        begun = await self._transact(lambda connection: self._book.begin(connection, command))
        if not isinstance(begun, Begun):
            self._after_commit()  # a cancellation without money is done by now
            return begun
        await reach("C2")
        outcome = await self._provider.refund(sent(begun.refund))
        await reach("C4")
        settling = SettleRefund(
            begun.refund, begun.lease_token, outcome, self._clock.now(), traceparent=command.traceparent
        )
        settled = await self.settle(settling)
        await reach("C6")
        return settled.answer if settled else await self._as_it_is(begun.refund)

    async def _repeat(self, command: GiveBack, stored: StoredAnswer) -> Answer | None:
        """The stored answer, or how far the refund has come while the provider keeps everybody waiting."""
        if stored.status is not None and stored.answer is not None:
            return Answer(stored.status, stored.answer, _location(stored.status, stored.answer), replayed=True)
        async with self._db.reading() as connection:
            refund = await refunds.of_key(connection, command.tenant, command.order_id, command.key)
        return await self._as_it_is(refund) if refund and refund.status is RefundStatus.UNKNOWN else None

    async def _as_it_is(self, refund: Refund) -> Answer:
        async with self._db.reading() as connection:
            now = await refunds.one(connection, refund.tenant, refund.order_id, refund.id)
            order = await orders.one(connection, refund.tenant, refund.order_id)
        if now is None or order is None:
            raise LookupError(refund.id)
        return refund_answers.of_refund(order, now)

    async def _transact(self, work: Callable[[AsyncConnection], Awaitable[Result]]) -> Result:
        async def written(connection: AsyncConnection) -> Result:
            result = await work(connection)
            await reach("C1")
            return result

        async with self._turn:
            return await self._db.run(written)


def sent(refund: Refund) -> port.Refund:
    """The refund as the provider is asked for it: the same every time."""
    return port.Refund(
        key=refund.provider_key,
        refund_id=refund.id,
        order_id=refund.order_id,
        tenant=refund.tenant,
        payment_reference=refund.payment_reference,
        amount=refund.amount,
        currency=refund.currency,
    )


def _count(refund: Refund) -> None:
    metrics.REFUNDS.labels(str(refund.kind), str(refund.status)).inc()
    if refund.kind is RefundKind.LATE_SUCCESS and refund.status is RefundStatus.REFUSED:
        # Nobody asked for this refund, so nobody will ask again: somebody has to look.
        log.error("late payment cannot be given back", order_id=refund.order_id, refusal=refund.refusal)


def _location(status: int, answer: str) -> dict[str, str]:
    if status != 201:  # noqa: PLR2004
        return {}
    refund = json.loads(answer)
    return {"Location": f"/v1/orders/{refund['order_id']}/refunds/{refund['id']}"}
