"""Webhooks: a notice of the provider makes us look, and money that came too late is found and given back."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

import structlog
from sqlalchemy.ext.asyncio import AsyncConnection
from typing_extensions import override

from services.checkout.commands.checkout import charge_of
from services.checkout.domain import Notice, Order
from services.checkout.payments.notices import NotGenuineError, notice_of, verify
from services.checkout.payments.port import Captured, NotExecuted, Unknown
from services.checkout.store import orders, provider_events
from services.checkout.store.provider_events import Doubt
from shared.runtime import metrics
from shared.runtime.group_commit import GroupCommit
from shared.runtime.supervision import Loop, brief

if TYPE_CHECKING:
    from services.checkout.commands.refund import Refunds
    from services.checkout.payments.port import PaymentProvider
    from shared.runtime.clock import Clock
    from shared.runtime.db import Database

log = structlog.get_logger()

AT_ONCE = 8
LEASE_S = 30.0  # longer than a look-up may take
KEPT_DAYS = 7  # the provider repeats an event for three
FORGET_EVERY_S = 600.0
FORGOTTEN_AT_ONCE = 1000


class Webhooks(Loop):
    """Takes the provider's notices; as a loop, looks into those of orders that had ended unpaid."""

    idle_s = 1.0

    def __init__(
        self, db: Database, provider: PaymentProvider, refunds: Refunds, clock: Clock, secrets: Sequence[str]
    ) -> None:
        """A notice is genuine when one of `secrets` signed it; without any, webhooks are off."""
        super().__init__("webhooks")
        self.batches: GroupCommit[Notice, bool] = GroupCommit("notices", db, _take, _recall)
        self._db = db
        self._provider = provider
        self._refunds = refunds
        self._clock = clock
        self._secrets = secrets
        self._forget_at = clock.monotonic()

    @property
    def off(self) -> bool:
        """Whether there is nothing to check a signature with."""
        return not self._secrets

    def verify(self, body: bytes, signature: str) -> None:
        """Raise `NotGenuineError` unless the provider has just signed these bytes."""
        try:
            verify(body, signature, self._secrets, self._clock.now())
        except NotGenuineError as error:
            metrics.PAYMENT_NOTICES.labels("refused").inc()
            log.warning("webhook refused", reason=str(error))
            raise

    async def receive(self, event: object) -> None:
        """Take a verified event; returns when what it changes is committed. Raises ValueError when it is none."""
        notice = notice_of(event)
        metrics.PAYMENT_NOTICES.labels("taken" if notice else "ignored").inc()
        if notice is not None:
            await self.batches.submit(notice)

    @override
    async def run_once(self) -> int:
        """Look into what is due; returns how many orders that was."""
        doubts = await self._db.run(lambda connection: provider_events.due(connection, LEASE_S, AT_ONCE))
        if doubts:
            await self._look_into(doubts)
        elif self._clock.monotonic() >= self._forget_at:
            self._forget_at = self._clock.monotonic() + FORGET_EVERY_S
            return await self._db.run(
                lambda connection: provider_events.forget(connection, KEPT_DAYS, FORGOTTEN_AT_ONCE)
            )
        return len(doubts)

    async def _look_into(self, doubts: Sequence[Doubt]) -> None:
        async with self._db.reading() as connection:
            found = {order.id: order for order in await orders.some(connection, [one.order_id for one in doubts])}
        work = [self._look_up(one, found[one.order_id]) for one in doubts]
        for one, result in zip(doubts, await asyncio.gather(*work, return_exceptions=True), strict=True):
            if isinstance(result, BaseException):
                # It is due again in a while.
                log.warning("looking into a late payment failed", order_id=one.order_id, error=brief(result))

    async def _look_up(self, doubt: Doubt, order: Order) -> None:
        outcome = await self._provider.look_up(charge_of(order), doubt.reference)
        if isinstance(outcome, Captured):
            await self._refunds.reverse(order, outcome)
        elif isinstance(outcome, Unknown | NotExecuted):
            return  # nobody could say: it stays due
        await self._db.run(lambda connection: provider_events.settled(connection, doubt.event_id))


async def _take(connection: AsyncConnection, notices: Sequence[Notice]) -> Sequence[bool]:
    await provider_events.take(connection, notices)
    return [True] * len(notices)


async def _recall(connection: AsyncConnection, notice: Notice) -> bool | None:  # noqa: ARG001 - as any notice does
    """Taken a second time it changes nothing, so there is no need to know whether it was taken."""
    return None
