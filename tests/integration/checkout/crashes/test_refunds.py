"""Whatever happens at whichever moment of a refund, in whichever process: the money goes back exactly once."""

import asyncio
import secrets

import httpx
import pytest

from shared.runtime.failpoints import VARIABLE
from tests.integration.checkout.conftest import API_KEY
from tests.integration.checkout.crashes.stages import Client, Stage, Theatre
from tests.support.replicas import Replica

FINAL_WITHIN_S = 30.0

# The first commit is the intent's, the second the outcome's; the task is the one that a request is carried out in.
MOMENTS = (
    "C1={fault}@1",
    "C1={fault}@2",
    "C2={fault}@1",
    "C3={fault}@1",
    "C4={fault}@1",
    "C5/key {key}={fault}@1",
    "C5/key {key}={fault}@2",
    "C6={fault}@1",
)
CALLS = {"refunds": 201, "cancel": 200}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("fault", ["exit", "raise"])
async def test_a_fault_at_any_moment_loses_and_doubles_nothing(theatre: Theatre, call: str, fault: str) -> None:
    async def story(stage: Stage, moment: str) -> list[str]:
        key = secrets.token_hex(8)
        sound, faulty = stage.replica(), stage.replica()
        await asyncio.gather(sound.start(), faulty.start(**{VARIABLE: moment.format(key=key, fault=fault)}))
        order_id = await placed(stage, sound)

        answer = await ask(stage, faulty, order_id, call, key)
        final = await learn(stage, sound, order_id, call, key)

        honest = answer is None or answer.status_code in {CALLS[call], 202, 503}
        found = [] if honest else [f"{moment} answered {answer.text if answer else ''}"]
        if final.status_code != CALLS[call] or _contradicts(answer, final):
            found.append(f"{moment} finally answered {final.status_code}: {final.text}")
        return found + [f"{moment}: {one}" for one in await stage.complaints(sound)]

    async def tell(moment: str) -> list[str]:
        return await theatre.tell(lambda stage: story(stage, moment))

    assert [one for found in await asyncio.gather(*map(tell, MOMENTS)) for one in found] == []


async def test_two_processes_together_give_back_exactly_the_total(theatre: Theatre) -> None:
    async def story(stage: Stage) -> list[str]:
        pair = [stage.replica(), stage.replica()]
        await asyncio.gather(*(replica.start() for replica in pair))
        order_id = await placed(stage, pair[0])

        some = [ask(stage, pair[n % 2], order_id, "refunds", f"part {n}", amount=7) for n in range(40)]
        same = [ask(stage, pair[n % 2], order_id, "refunds", "the same", amount=5) for n in range(20)]
        answers = await asyncio.gather(*some, *same)
        await asyncio.gather(
            *(learn(stage, replica, order_id, "cancel", f"cancel {n}") for n, replica in enumerate(pair))
        )

        told = {(one.status_code, one.text) for one in answers[40:] if one and one.status_code == CALLS["refunds"]}
        statuses = {one.status_code if one else 0 for one in answers}
        found = [] if len(told) <= 1 else [f"one key got {len(told)} answers"]
        found += [] if statuses <= {201, 202, 422} else [f"answered {statuses}"]
        status = await stage.connection.fetchval("SELECT status FROM orders WHERE id = $1", order_id)
        found += [] if status == "cancelled" else [f"the order is {status}"]
        return found + await stage.complaints(pair[0])

    assert await theatre.tell(story) == []


async def placed(stage: Stage, replica: Replica) -> str:
    """An order of 100, paid."""
    client = Client()
    assert await stage.post(replica, client) == [201]
    order_id: str = client.answers[0].json()["id"]
    return order_id


async def ask(
    stage: Stage, replica: Replica, order_id: str, call: str, key: str, amount: int | None = None
) -> httpx.Response | None:
    """The answer, None when the process died over it."""
    headers = {"Authorization": f"Bearer {API_KEY}", "Idempotency-Key": key}
    request = {"amount": amount} if amount else {}
    try:
        return await stage.http.post(f"{replica.url}/v1/orders/{order_id}/{call}", json=request, headers=headers)
    except httpx.TransportError:
        return None


async def learn(stage: Stage, replica: Replica, order_id: str, call: str, key: str) -> httpx.Response:
    """Repeat the request until its answer is final."""
    async with asyncio.timeout(FINAL_WITHIN_S):
        while (answer := await ask(stage, replica, order_id, call, key)) is None or _is_open(answer):
            await asyncio.sleep(0.1)
    return answer


def _contradicts(answer: httpx.Response | None, final: httpx.Response) -> bool:
    return answer is not None and answer.status_code == final.status_code and answer.text != final.text


def _is_open(answer: httpx.Response) -> bool:
    in_use = answer.status_code == 409 and answer.json()["code"] in {"idempotency_key_in_use", "refund_in_progress"}
    return answer.status_code in {202, 503} or in_use
