"""kill -9 at any moment: what was answered stays true, and webhooks are still owed."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from tests.integration.sandboxes.programs import Payments, payments_program, running_payments


@pytest.fixture
async def mortal(tmp_path: Path) -> AsyncIterator[Payments]:
    program = payments_program(tmp_path)
    async with running_payments(program, tmp_path) as payments:
        yield payments
    await program.end(signal.SIGKILL)


async def whole_ledger(payments: Payments) -> list[dict[str, object]]:
    items: list[dict[str, object]] = (await payments.http.get("/_sandbox/ledger")).json()["items"]
    return items


async def test_kill_9_keeps_the_ledger_and_every_answer(mortal: Payments) -> None:
    paid = await mortal.charge("ord_paid")
    declined = await mortal.charge("ord_declined", payment_method="pm_card_visa_chargeDeclined")
    challenged = await mortal.charge("ord_waiting", payment_method="pm_card_authenticationRequired")
    refund = await mortal.refunds.create_async({"payment_intent": paid.json()["id"], "amount": 70})
    events = await mortal.events.list_async()
    before = await whole_ledger(mortal)

    await mortal.program.restart(signal.SIGKILL)

    assert await whole_ledger(mortal) == before
    assert (await mortal.charge("ord_paid")).content == paid.content
    again = await mortal.charge("ord_declined", payment_method="pm_card_visa_chargeDeclined")
    assert (again.content, again.headers["idempotent-replayed"]) == (declined.content, "true")
    assert (await mortal.charge("ord_paid", amount="1")).status_code == 400
    assert (await mortal.refunds.retrieve_async(refund.id)).amount == 70
    assert [str(event) for event in (await mortal.events.list_async()).data] == [str(event) for event in events.data]
    await mortal.http.post(f"/_sandbox/3ds/{challenged.json()['id']}", json={"outcome": "complete"})
    assert (await mortal.row("ord_waiting"))["captured"] == 200


async def test_a_charge_that_hung_when_it_was_killed_is_known_afterwards(mortal: Payments) -> None:
    await mortal.faults(charge_then_reset=True)
    with pytest.raises(httpx.ReadError):
        await mortal.charge("ord_1")

    await mortal.program.restart(signal.SIGKILL)

    assert (await mortal.charge("ord_1")).headers["idempotent-replayed"] == "true"
    assert (await mortal.row("ord_1"))["captured"] == 200


async def test_a_torn_last_line_is_cut_off(mortal: Payments) -> None:
    await mortal.charge("ord_1")
    await mortal.program.end(signal.SIGKILL)
    whole = mortal.ledger_file.read_bytes()
    mortal.ledger_file.write_bytes(whole + whole[: len(whole) // 2])

    await mortal.program.start()
    await mortal.charge("ord_2")
    await mortal.program.restart(signal.SIGKILL)

    assert [row["order_id"] for row in await whole_ledger(mortal)] == ["ord_1", "ord_2"]
    assert all(json.loads(line) for line in mortal.ledger_file.read_text().splitlines())


async def test_forgotten_keys_stay_forgotten(mortal: Payments) -> None:
    first = await mortal.charge("ord_1")
    await mortal.http.post("/_sandbox/forget-keys")
    await mortal.program.restart(signal.SIGKILL)

    assert (await mortal.charge("ord_1")).json()["id"] != first.json()["id"]


async def test_sigterm_ends_it_cleanly_even_while_an_answer_hangs(mortal: Payments) -> None:
    await mortal.faults(charge_then_hang=True)
    charging = asyncio.create_task(mortal.charge("ord_1"))
    async with asyncio.timeout(5):
        while not await whole_ledger(mortal):
            await asyncio.sleep(0.02)

    exit_code = await asyncio.wait_for(mortal.program.end(signal.SIGTERM), 10)

    assert exit_code == 0
    with pytest.raises(httpx.TransportError):
        await charging
    await mortal.program.start()


@pytest.mark.parametrize("missing", ["PAYMENTS_PORT", "PAYMENTS_LEDGER", "PAYMENTS_SECRET_KEY"])
async def test_a_missing_setting_is_named_in_one_line(
    tmp_path: Path, missing: str, capfd: pytest.CaptureFixture[str]
) -> None:
    program = payments_program(tmp_path, **{missing: ""})

    with pytest.raises(AssertionError, match="ended with 1"):
        await program.start()

    assert capfd.readouterr().err == f"payment sandbox: {missing} is not set: set it in the environment\n"
