"""Checkout: place → charge → settle, with no transaction and no pooled connection held during the charge."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

import structlog
from typing_extensions import override

from services.checkout.commands import answers
from services.checkout.commands.answers import Answer
from services.checkout.commands.once import Once
from services.checkout.commands.place_order import KeyTaken, Placed, PlaceOrder
from services.checkout.commands.settle import Overtaken, Settle, Settled
from services.checkout.domain import Order
from services.checkout.payments.port import Charge, Outcome
from services.checkout.store import idempotency, orders
from shared.runtime import metrics
from shared.runtime.failpoints import reach
from shared.runtime.supervision import Loop

if TYPE_CHECKING:
    from services.checkout.commands.batch import Command, Result
    from services.checkout.payments.port import PaymentProvider
    from services.checkout.store.idempotency import StoredAnswer
    from shared.runtime.admission import Admission
    from shared.runtime.clock import Clock
    from shared.runtime.db import Database
    from shared.runtime.group_commit import GroupCommit

log = structlog.get_logger()


class Checkout(Loop):
    """Takes orders. As a loop it only keeps the process alive until the charges under way are settled."""

    idle_s = 1.0

    def __init__(
        self,
        db: Database,
        batches: GroupCommit[Command, Result],
        provider: PaymentProvider,
        clock: Clock,
        admission: Admission,
    ) -> None:
        """Every change goes through `batches`; `admission` is told how long orders wait for theirs."""
        super().__init__("checkout")
        self._db = db
        self._batches = batches
        self._provider = provider
        self._clock = clock
        self._admission = admission
        self._once: Once[PlaceOrder] = Once(db, clock, self._place, self._repeat)

    @override
    async def run_once(self) -> int:
        """Nothing to do between requests."""
        return 0

    @override
    async def finish(self) -> None:
        await self._once.finish()

    async def place(self, command: PlaceOrder) -> Answer:
        """Place an order, or repeat the answer that its key got before."""
        return await self._once.answer(command)

    async def _place(self, command: PlaceOrder) -> Answer | KeyTaken:
        with self._admission.waiting():
            result = await self._batches.submit(command)
        match result:
            case Placed(order, lease_token):
                answer = await self._charge_and_settle(order, lease_token, command.traceparent)
            case KeyTaken():
                return result
            case Answer():
                answer = result
            case _:
                raise TypeError(result)
        metrics.ORDERS.labels(str(answer.status)).inc()
        return answer

    async def _charge_and_settle(self, order: Order, lease_token: int, traceparent: str | None) -> Answer:
        await reach("C2")
        outcome = await self._charge(order)
        await reach("C4")
        command = Settle(order, lease_token, outcome, self._clock.now(), traceparent=traceparent)
        settled = await self._batches.submit(command)
        await reach("C6")
        match settled:
            case Settled(_, answer):
                return answer
            case Overtaken():
                return await self._as_it_is(order)
            case _:
                raise TypeError(settled)

    async def _charge(self, order: Order) -> Outcome:
        started = monotonic()
        outcome = await self._provider.charge(charge_of(order))
        metrics.CHARGE_SECONDS.labels(type(outcome).__name__).observe(monotonic() - started)
        return outcome

    async def _as_it_is(self, order: Order) -> Answer:
        """Recovery was faster: what it told the key is the answer, whatever has become of the order since."""
        async with self._db.reading() as connection:
            stored = await idempotency.find(connection, order.tenant, order.idempotency_key)
            now = await orders.one(connection, order.tenant, order.id)
        if stored and stored.order_id == order.id and stored.status is not None and stored.answer is not None:
            return Answer(stored.status, stored.answer, _location(stored))
        return answers.of_order(now or order)

    async def _repeat(self, command: PlaceOrder, stored: StoredAnswer) -> Answer | None:
        """The stored answer, or the order as it is while nobody knows how its payment ends."""
        if stored.status is not None and stored.answer is not None:
            return Answer(stored.status, stored.answer, _location(stored), replayed=True)
        if stored.order_id is None:
            return None
        async with self._db.reading() as connection:
            order = await orders.one(connection, command.tenant, stored.order_id)
        return answers.of_order(order) if order and order.status in answers.ANSWERED_WHILE_OPEN else None


def charge_of(order: Order) -> Charge:
    """The charge of an order's current payment attempt."""
    payment = order.payment
    return Charge(payment.provider_key, order.id, order.tenant, order.total, order.currency, payment.method)


def _location(stored: StoredAnswer) -> dict[str, str]:
    return {"Location": f"/v1/orders/{stored.order_id}"} if stored.status == 201 else {}  # noqa: PLR2004
