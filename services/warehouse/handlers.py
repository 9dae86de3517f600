from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy.ext.asyncio import AsyncConnection

from services.warehouse import store
from shared.bus.arrivals import Event
from shared.bus.delivery import Handlers
from shared.contracts.orders import ORDER_CANCELLED, ORDER_COMPLETED


async def receive(connection: AsyncConnection, events: Sequence[Event]) -> None:
    """Put new orders on the list and take cancelled ones off it, in whichever order they come."""
    newest: dict[str, Event] = {}
    for event in events:
        known = newest.get(event.subject)
        if known is None or known.version < event.version:
            newest[event.subject] = event
    # In key order, so that two replicas never wait for each other in a circle.
    await store.apply(connection, [newest[order_id] for order_id in sorted(newest)])
    await store.remember(connection, events)


# A refund alone changes nothing about what is shipped: goods stay sold until the order is cancelled.
HANDLERS: Handlers = {
    ORDER_COMPLETED: receive,
    ORDER_CANCELLED: receive,
}
