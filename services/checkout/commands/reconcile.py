"""Reconcile: hold the books against each other, say what disagrees, and repair what can only be meant one way.

What it does not see: a payment that moves later after it was begun than a reservation lasts. A webhook tells of that.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import structlog
from typing_extensions import override

from services.checkout.commands.checkout import charge_of
from services.checkout.domain import OPEN, Status
from services.checkout.payments.port import Captured, PaymentSeen, PaymentsUnreadableError, Unknown
from services.checkout.store import orders, reconciliation
from services.checkout.store.reconciliation import Account, Mismatch
from shared.runtime import metrics
from shared.runtime.identifiers import prefixed, uuid7_of
from shared.runtime.supervision import Loop

if TYPE_CHECKING:
    from services.checkout.commands.refund import Refunds
    from services.checkout.payments.port import PaymentProvider
    from shared.runtime.db import Database

log = structlog.get_logger()

SLICE = timedelta(minutes=1)  # of payments that are held in memory at once
# What is younger is still on its way; between an order and its payment lie a time-out and two clocks.
YOUNG, APART = timedelta(minutes=1), timedelta(seconds=15)
LEASE = timedelta(minutes=2)  # longer than a slice takes; it is renewed with every slice
PAGE = 500
ASKED_AT_ONCE = 20  # orders of a slice that are looked up one by one: more mean that something else is wrong

ENDED_UNPAID = frozenset({Status.FAILED, Status.EXPIRED})
Payments = Mapping[str, Sequence[PaymentSeen]]  # by order


class Reconciliation(Loop):
    """Compares slice by slice what happened since the last time; of several processes one at a time does."""

    idle_s = 5.0

    def __init__(
        self, db: Database, provider: PaymentProvider, refunds: Refunds, *, every_s: float, overlap_s: float
    ) -> None:
        """Every `every_s` seconds, beginning `overlap_s` before the end of the last time: things take their time."""
        super().__init__("reconciliation")
        self._db = db
        self._provider = provider
        self._refunds = refunds
        self._every = timedelta(seconds=every_s)
        self._overlap = timedelta(seconds=overlap_s)

    @override
    async def run_once(self) -> int:
        """Compare everything that is due; returns how many mismatches there were."""
        turn = await self._db.run(lambda connection: reconciliation.begin(connection, LEASE))
        if turn is None:
            return 0
        async with self._db.reading() as connection:
            found = await reconciliation.in_stock(connection)
        for one in found:
            _tell(one)
        since, until = turn.done_until - self._overlap, turn.now - YOUNG
        try:
            return len(found) + await self._compare(since, until)
        except PaymentsUnreadableError as error:
            # The lease runs out: the same again then.
            log.warning("payments cannot be compared", reason=str(error))
            return 0

    async def _compare(self, since: datetime, until: datetime) -> int:
        count = 0
        while since < until and not self.stopping:
            end = min(since + SLICE, until)
            found = await self.compare(since, end)
            for one in found:
                _tell(one)
            count += len(found)
            again = self._every if end == until else LEASE
            await self._done(end, again)
            since = end
        return count

    async def _done(self, until: datetime, again: timedelta) -> None:
        self.beat()
        await self._db.run(lambda connection: reconciliation.go_on(connection, until, again))
        metrics.RECONCILED_UNTIL.set(until.timestamp())

    async def compare(self, since: datetime, until: datetime) -> list[Mismatch]:
        """Compare what began from `since` to before `until`, and repair what can be."""
        seen = await self._payments(since - APART, until + APART)
        first, last = _first_id(since), _first_id(until)
        async with self._db.reading() as connection:
            found = await reconciliation.in_orders(connection, first, last)
        for ids in _pages(list(seen)):
            found += await self._compare_money(ids, seen)
        return found + await self._unpaid(first, last, seen)

    async def _payments(self, since: datetime, until: datetime) -> Payments:
        seen: defaultdict[str, list[PaymentSeen]] = defaultdict(list)
        async for payment in self._provider.payments(since, until):
            self.beat()
            if payment.order_id is not None and payment.captured:
                seen[payment.order_id].append(payment)
        return seen

    async def _compare_money(self, ids: Sequence[str], seen: Payments) -> list[Mismatch]:
        async with self._db.reading() as connection:
            accounts = await reconciliation.accounts(connection, ids)
        found = [one for id_ in ids if (one := disagreement(id_, accounts.get(id_), seen[id_]))]
        if waiting := [one.subject for one in found if one.kind == "paid_and_open"]:
            await self._db.run(lambda connection: reconciliation.hurry(connection, waiting))
        if late := [one.subject for one in found if one.kind == "paid_and_ended"]:
            await self._give_back(late, seen)
        return found

    async def _give_back(self, ids: Sequence[str], seen: Payments) -> None:
        async with self._db.reading() as connection:
            ended = await orders.some(connection, ids)
        for order in ended:
            for payment in seen[order.id]:
                # Another amount than ours was taken by somebody else's doing: that is for people to sort out.
                if payment.captured > payment.refunded and _fits(payment, order.total, order.currency):
                    await self._refunds.reverse(order, Captured(payment.reference))

    async def _unpaid(self, first: str, last: str, seen: Payments) -> list[Mismatch]:
        """Orders that count as paid and whose payment was not listed: begun long after the order, or never made."""
        missing: list[str] = []
        ids = [first]
        while ids and len(missing) <= ASKED_AT_ONCE:
            async with self._db.reading() as connection:
                ids = await reconciliation.paid(connection, ids[-1], last, PAGE)
            missing += [id_ for id_ in ids if id_ not in seen]
        async with self._db.reading() as connection:
            asked = await orders.some(connection, missing[:ASKED_AT_ONCE])
        found = []
        for order in asked:
            outcome = await self._provider.look_up(charge_of(order))
            if not isinstance(outcome, Captured | Unknown):
                found.append(Mismatch("unpaid_and_completed", order.id, type(outcome).__name__))
        return found


def disagreement(order_id: str, account: Account | None, captured: Sequence[PaymentSeen]) -> Mismatch | None:
    """What the provider's captured payments of an order say that its account does not, or None."""
    kept = [one for one in captured if one.captured > one.refunded]
    if account is None:
        return Mismatch("paid_without_order", order_id, _list(kept)) if kept else None
    if account.refunding:
        return None  # it is being made good
    if account.status in OPEN:
        return Mismatch("paid_and_open", order_id, f"{account.status}, {_list(captured)}")
    if account.status in ENDED_UNPAID and kept:
        return Mismatch("paid_and_ended", order_id, f"{account.status}, {_list(kept)}")
    return _in_amounts(order_id, account, captured, kept)


def _in_amounts(
    order_id: str, account: Account, captured: Sequence[PaymentSeen], kept: Sequence[PaymentSeen]
) -> Mismatch | None:
    refunded = sum(one.refunded for one in captured)
    if refunded != account.refunded_total:
        return Mismatch("refunds", order_id, f"{refunded} given back, {account.refunded_total} booked")
    if len(kept) > 1:
        return Mismatch("paid_twice", order_id, _list(kept))
    if not all(_fits(one, account.total, account.currency) for one in captured):
        return Mismatch("amount", order_id, f"{_list(captured)}, not {account.total} {account.currency}")
    return None


def _fits(payment: PaymentSeen, total: int, currency: str) -> bool:
    return (payment.captured, payment.currency) == (total, currency)


def _list(payments: Sequence[PaymentSeen]) -> str:
    return ", ".join(f"{one.reference}: {one.captured} {one.currency}" for one in payments)


def _tell(mismatch: Mismatch) -> None:
    metrics.MISMATCHES.labels(mismatch.kind).inc()
    log.error("the books disagree", kind=mismatch.kind, subject=mismatch.subject, why=mismatch.why)


def _first_id(instant: datetime) -> str:
    """The smallest id that an order of this instant may have."""
    return prefixed("ord", uuid7_of(int(instant.timestamp() * 1000), bytes(10)))


def _pages(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    return (ids[start : start + PAGE] for start in range(0, len(ids), PAGE))
