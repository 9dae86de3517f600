from __future__ import annotations

from typing import TYPE_CHECKING

from services.email import store
from services.email.domain import KINDS, message_id, subject_of
from services.email.store import NewMessage
from shared.contracts.orders import (
    ORDER_CANCELLED,
    ORDER_COMPLETED,
    ORDER_PAYMENT_FAILED,
    ORDER_REFUNDED,
    OrderRefunded,
)
from shared.runtime.identifiers import new_id

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy.ext.asyncio import AsyncConnection

    from shared.bus.arrivals import Event
    from shared.bus.delivery import Handlers


def handlers(domain: str) -> Handlers:
    """What email does about each event: it queues a mail. `domain` is what our Message-IDs end with."""

    async def queue_mails(connection: AsyncConnection, events: Sequence[Event]) -> None:
        await store.queue(connection, [new_message(event, domain) for event in events])

    return {
        ORDER_COMPLETED: queue_mails,
        ORDER_PAYMENT_FAILED: queue_mails,
        ORDER_CANCELLED: queue_mails,
        ORDER_REFUNDED: queue_mails,
    }


def new_message(event: Event, domain: str) -> NewMessage:
    """The mail that an event asks for: the same whenever it arrives, so that the order does not matter."""
    kind, order = KINDS[event.type], event.data
    reference = order.refund_id if isinstance(order, OrderRefunded) else ""
    return NewMessage(
        id=new_id("msg"),
        order_id=order.order_id,
        kind=kind,
        reference=reference,
        order_version=event.version,
        recipient=order.customer.email,
        subject=subject_of(kind, order),
        message_id=message_id(kind, order.order_id, reference, domain),
        content=order.model_dump_json(exclude_none=True),
    )
