"""Checkout: place → charge → settle, with no transaction and no pooled connection held during the charge."""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import TYPE_CHECKING

import structlog
from typing_extensions import override

from services.checkout.commands import answers
from services.checkout.commands.answers import Answer
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

KEY_WAIT_S = 5.0  # how long a repeated request waits for the answer of the first
KEY_POLL_S = 0.05


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
        self._running: dict[tuple[str, str], asyncio.Task[Answer]] = {}

    @override
    async def run_once(self) -> int:
        """Nothing to do between requests."""
        return 0

    @override
    async def finish(self) -> None:
        # A charge outlives its request: wait for those whose client has gone, or the recovery would have to ask again.
        if self._running:
            await asyncio.wait(list(self._running.values()))

    async def place(self, command: PlaceOrder) -> Answer:
        """Place an order, or repeat the answer that its key got before.

        Runs in a task of its own: when the client goes away, the order is finished all the same.
        """
        pair = (command.tenant, command.key)
        first = self._running.get(pair)
        if first is None:
            task = asyncio.create_task(self._place(command), name=f"order {command.order_id}")
            self._running[pair] = task  # the event loop itself keeps only a weak reference
            task.add_done_callback(lambda _: self._running.pop(pair, None))
            return await asyncio.shield(task)
        await asyncio.wait({first}, timeout=KEY_WAIT_S)
        return await self._settle_key(command)

    async def _settle_key(self, command: PlaceOrder) -> Answer:
        """The answer for a request that came second in this process."""
        async with self._db.reading() as connection:
            stored = await idempotency.find(connection, command.tenant, command.key)
        return await self._repeat(command, stored) if stored else await self.place(command)

    async def _place(self, command: PlaceOrder) -> Answer:
        with self._admission.waiting():
            result = await self._batches.submit(command)
        match result:
            case Placed(order, lease_token):
                answer = await self._charge_and_settle(order, lease_token, command.traceparent)
            case KeyTaken(stored):
                return await self._wait_for_first(command, stored)
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
        """Recovery was faster: what it found out is the answer."""
        async with self._db.reading() as connection:
            now = await orders.one(connection, order.tenant, order.id)
        return answers.of_order(now or order)

    async def _wait_for_first(self, command: PlaceOrder, stored: StoredAnswer) -> Answer:
        """Another process, or one that has died, came first with this key: wait for its answer, then say so."""
        deadline = monotonic() + KEY_WAIT_S
        while stored.request_sha256 == command.request_sha256 and stored.status is None and monotonic() < deadline:
            if (answer := await self._repeat(command, stored)).status != 409:  # noqa: PLR2004
                return answer
            await self._clock.sleep(KEY_POLL_S)
            async with self._db.reading() as connection:
                found = await idempotency.find(connection, command.tenant, command.key)
            if found is None:  # the first one came to nothing and gave the key back: this one is first now
                return await self._place(command)
            stored = found
        return await self._repeat(command, stored)

    async def _repeat(self, command: PlaceOrder, stored: StoredAnswer) -> Answer:
        if stored.request_sha256 != command.request_sha256:
            return answers.key_reused()
        if stored.status is not None and stored.answer is not None:
            return Answer(stored.status, stored.answer, _location(stored), replayed=True)
        if stored.order_id is not None:
            async with self._db.reading() as connection:
                order = await orders.one(connection, command.tenant, stored.order_id)
            if order is not None and order.status in answers.ANSWERED_WHILE_OPEN:
                return answers.of_order(order)
        return answers.key_in_use()


def charge_of(order: Order) -> Charge:
    """The charge of an order's current payment attempt."""
    payment = order.payment
    return Charge(payment.provider_key, order.id, order.tenant, order.total, order.currency, payment.method)


def _location(stored: StoredAnswer) -> dict[str, str]:
    return {"Location": f"/v1/orders/{stored.order_id}"} if stored.status == 201 else {}  # noqa: PLR2004
