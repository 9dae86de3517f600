"""Two replicas on one database: what one of them drops, the other one picks up."""

import asyncio
import random
import signal

from tests.integration.checkout.conftest import until
from tests.integration.checkout.crashes.stages import Client, Stage, Theatre


async def test_a_replica_that_is_killed_under_load_costs_nobody_an_order(theatre: Theatre, redis_url: str) -> None:
    async def story(stage: Stage) -> list[str]:
        shaky, steady = replicas = [stage.replica(CHECKOUT_REDIS_URL=redis_url) for _ in range(2)]
        await asyncio.gather(*(one.start() for one in replicas))
        stage.clients += [Client(skus=some_skus(n)) for n in range(200)]

        shopping = asyncio.create_task(shop(stage, [shaky.url, steady.url], seconds=4.0))
        await asyncio.sleep(1.2)
        killed = await shaky.end(signal.SIGKILL)
        await asyncio.sleep(0.8)
        await shaky.start()
        statuses = await shopping
        await stage.come_to_rest()

        assert killed == -signal.SIGKILL
        assert statuses == [201] * 200
        return await stage.complaints(steady)

    assert await theatre.tell(story) == []


async def test_a_replica_that_sleeps_through_its_lease_wakes_up_and_changes_nothing(theatre: Theatre) -> None:
    async def story(stage: Stage) -> list[str]:
        sleeper, awake = stage.replica(), stage.replica()
        await asyncio.gather(sleeper.start(), awake.start())
        await stage.payments.faults(latency_ms=400)

        waiting = asyncio.gather(stage.post(sleeper, *(Client() for _ in range(8))))
        await until(lambda: eight_are_open(stage))
        sleeper.send(signal.SIGSTOP)
        await stage.payments.faults()
        await stage.come_to_rest()
        sleeper.send(signal.SIGCONT)
        [statuses] = await waiting

        assert statuses == [201] * 8  # it has seen that somebody else was faster, and says what that one found out
        assert await settled_by(stage) == {"recovery"}
        return await stage.complaints(awake)

    assert await theatre.tell(story) == []


async def test_replicas_that_sell_the_same_products_never_deadlock(theatre: Theatre) -> None:
    dice = random.Random(1)  # noqa: S311 - the same orders every time

    async def story(stage: Stage) -> list[str]:
        replicas = [stage.replica() for _ in range(3)]
        await asyncio.gather(*(one.start() for one in replicas))
        before = await deadlocks(stage)

        for _ in range(15):
            buyers = [Client(skus=[f"SKU-{n:04}" for n in dice.sample(range(1, 13), 6)]) for _ in range(32)]
            turns = [stage.post(replicas[n % 3], buyer) for n, buyer in enumerate(buyers)]
            assert {status for [status] in await asyncio.gather(*turns)} <= {201, 202}
        await stage.come_to_rest()
        complaints = await stage.complaints(replicas[0])
        await asyncio.gather(*(one.end() for one in replicas))  # a backend tells what it counted when it goes

        assert await deadlocks(stage) == before
        return complaints

    assert await theatre.tell(story) == []


async def shop(stage: Stage, urls: list[str], seconds: float) -> list[int]:
    """All clients of the stage, one after the other, each going on at the next replica when one lets it down."""

    async def one(number: int, client: Client) -> int:
        await asyncio.sleep(seconds * number / len(stage.clients))
        nearest = urls[number % 2 :] + urls[: number % 2]
        return await client.learn(stage.http, *nearest)

    return await asyncio.gather(*(one(number, client) for number, client in enumerate(stage.clients)))


def some_skus(number: int) -> list[str]:
    return [f"SKU-{n:04}" for n in range(1 + number % 5, 4 + number % 5)]


async def eight_are_open(stage: Stage) -> bool:
    return await stage.open_orders() == 8


async def settled_by(stage: Stage) -> set[str]:
    """Who completed the orders of the clients that are here now."""
    rows = await stage.connection.fetch(
        "SELECT split_part(t.cause, ':', 1) AS cause FROM order_transitions t JOIN orders o ON o.id = t.order_id"
        " WHERE t.to_status = 'completed' AND o.idempotency_key = ANY($1)",
        [client.key for client in stage.clients],
    )
    return {row["cause"] for row in rows}


async def deadlocks(stage: Stage) -> int:
    count: int = await stage.connection.fetchval(
        "SELECT deadlocks FROM pg_stat_database WHERE datname = $1", stage.tenant
    )
    return count
