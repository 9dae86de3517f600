"""From events to queued mails."""

from itertools import permutations

from services.email.__main__ import MIGRATIONS
from shared.runtime.migrations import check
from tests.integration.email.conftest import World
from tests.support.orders import Order


async def test_each_event_of_an_order_becomes_one_mail(world: World) -> None:
    order, other = Order(), Order()

    await world.deliver(
        order.completed(), order.refunded(50), order.refunded(60), order.cancelled(), other.payment_failed()
    )

    kinds = sorted(kind for (kind,) in await world.messages("kind"))
    assert kinds == ["cancelled", "completed", "payment_failed", "refunded", "refunded"]


async def test_an_event_that_arrives_again_changes_nothing(world: World) -> None:
    event = Order().completed()
    await world.deliver(event)
    await world.send()

    await world.deliver(event)
    await world.execute("DELETE FROM deliveries")
    await world.deliver(event)
    await world.send()

    assert await world.messages() == [("completed", "sent", 1)]
    assert len(world.mailbox.mails()) == 1


async def test_whatever_the_order_of_arrival_the_mails_are_the_same_and_leave_in_the_order_of_events(
    world: World,
) -> None:
    order = Order()
    events = [order.completed(), order.refunded(50), order.cancelled()]

    for arrival in permutations(events):
        for table in ("messages", "deliveries"):
            await world.execute(f"DELETE FROM {table}")
        world.mailbox.store.clear()
        for event in arrival:
            await world.deliver(event)
        await world.send()

        sent = [mail["Message-ID"].split(".")[0] for mail in world.mailbox.mails()]
        assert sent == ["<completed", "<refunded", "<cancelled"]


async def test_the_migrations_make_exactly_the_declared_tables(world: World, migrated: str) -> None:
    assert world

    await check(migrated, MIGRATIONS)
