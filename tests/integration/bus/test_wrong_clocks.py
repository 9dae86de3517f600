"""Processes whose clocks are wrong: what is due, leased or idle is for the clocks of Postgres and Redis to say."""

import asyncio
from datetime import datetime
from pathlib import Path
from time import monotonic

from sqlalchemy import text

from shared.bus.arrivals import Arrival
from shared.bus.consumer import CLAIM_IDLE_S, STUCK_S
from shared.contracts.envelope import encode
from tests.integration.bus.conftest import World, event
from tests.integration.bus.flowing import flowing
from tests.integration.bus.processes import RELAY, SERVICE, stage
from tests.support.fleet import AT_REST_WITHIN_S, Fleet, fleet
from tests.support.platform import until
from tests.support.servers import NewDatabase

BEHIND_S, AHEAD_S = -600.0, 600.0
OWED_S = 3.0
MAIL_S = 6.0  # longer than it takes until a peer looks for mails whose lease ran out


async def test_relays_and_replicas_whose_clocks_are_wrong_try_nothing_early_and_lose_nothing(
    new_database: NewDatabase, tmp_path: Path
) -> None:
    async with stage(await new_database(), tmp_path / "processes.log") as made:
        due_at = await owe_an_event(made.world)

        for clock_s in (BEHIND_S, AHEAD_S):
            await made.start(RELAY, clock_s=clock_s)
            await made.start(SERVICE, f"clock{clock_s:+g}", clock_s=clock_s)
        async with flowing(made.world) as flow:
            await flow.more(200)

        assert await settled_at(made.world) >= due_at


async def test_replicas_whose_clocks_are_wrong_take_nothing_over_early(
    new_database: NewDatabase, redis_url: str, tmp_path: Path
) -> None:
    async with fleet(new_database, redis_url, tmp_path) as ours:
        await slow_and_quick(ours, "email", f"E3=hang:{MAIL_S:g}@1")
        await slow_and_quick(ours, "warehouse", f"K1=hang:{2 * STUCK_S:g}@1")
        began = monotonic()
        await until(lambda: nothing_pending(ours), AT_REST_WITHIN_S)
        taken_over_after = monotonic() - began
        await ours.come_to_rest("warehouse", "email")

        assert taken_over_after > STUCK_S / 2  # seen to stand still a little later than it did
        assert await ours.value("email", "SELECT max(attempts) FROM messages") == 1
        assert await ours.violations("warehouse", "email") == []


async def slow_and_quick(ours: Fleet, service: str, armed: str) -> None:
    """Two replicas, and orders come in until the one whose clock is behind stands still in the middle of something."""
    await ours.start(service, f"quick-{service}", claim_idle_s=CLAIM_IDLE_S, clock_s=AHEAD_S)
    [slow] = await ours.start(service, f"slow-{service}", claim_idle_s=CLAIM_IDLE_S, clock_s=BEHIND_S, armed=armed)
    while not slow.reached(armed[:2]):
        await ours.place(1)
        await asyncio.sleep(0.05)


async def owe_an_event(world: World) -> datetime:
    """Its first attempt failed; returns when the database lets it be tried again."""
    late = event()
    await world.append(late)
    world.handling.failing[late.subject] = RuntimeError("not yet")
    await world.deliverer.deliver([Arrival(0, 1, encode(late))])
    due = text("UPDATE deliveries SET next_attempt_at = now() + :s * interval '1 second' RETURNING next_attempt_at")
    async with world.db.transaction() as connection:
        found: datetime = (await connection.execute(due, {"s": OWED_S})).scalar_one()
    return found


async def settled_at(world: World) -> datetime:
    async with world.db.reading() as connection:
        found: datetime = (
            await connection.execute(text("SELECT settled_at FROM deliveries WHERE position = 1"))
        ).scalar_one()
    return found


async def nothing_pending(ours: Fleet) -> bool:
    return await ours.pending("warehouse", "slow-warehouse") == 0
