from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy.ext.asyncio import AsyncConnection

from services.analytics import store
from services.analytics.domain import Changes, fact_of, newest_of_each
from shared.bus.arrivals import Event
from shared.bus.delivery import Handlers
from shared.contracts.orders import ORDER_CANCELLED, ORDER_COMPLETED, ORDER_PAYMENT_FAILED, ORDER_REFUNDED


async def count(connection: AsyncConnection, events: Sequence[Event]) -> None:
    """Replace the orders' facts where these are newer, and move the roll-ups by the difference.

    The roll-ups are written along, not computed on demand: adding up two million orders takes 0.4 s and their
    lines 1.3 s, reading the minutes of the same orders 6 ms and 0.6 s. A batch of 500 pays about 8 ms for that.
    """
    facts = newest_of_each(fact_of(event.subject, event.version, event.data) for event in events)
    changes = Changes()
    for old, new in await store.replace_facts(connection, facts):
        if old:
            changes.add(old, -1)
        changes.add(new)
    await store.change_rollups(connection, changes)


# Every type carries the order's whole state, so all of them are handled alike, in one go.
HANDLERS: Handlers = {
    ORDER_COMPLETED: count,
    ORDER_PAYMENT_FAILED: count,
    ORDER_CANCELLED: count,
    ORDER_REFUNDED: count,
}
