"""The payment provider is away, frozen or talks nonsense: fast and true answers, no storm, no unit of stock lost."""

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

import httpx
import pytest
from prometheus_client import REGISTRY

from services.checkout.payments.breaker import State
from shared.runtime import metrics
from tests.integration.checkout.conftest import Shop, running, settings_for, until
from tests.integration.sandboxes.programs import Payments, payments_program, running_payments

NOW_AND_THEN_S = 0.02  # between two orders under load
OPEN_WITHIN_S = 5.0
CLOSED_WITHIN_S = 15.0
Opening = Callable[..., Any]


@pytest.fixture
async def provider(tmp_path: Path) -> AsyncIterator[Payments]:
    """A sandbox of the test's own, which may be stopped."""
    program = payments_program(tmp_path)
    async with running_payments(program, tmp_path) as payments:
        yield payments
    assert program.process is not None
    if program.process.returncode is None:
        program.process.send_signal(signal.SIGCONT)
        await program.end(signal.SIGTERM)


@pytest.fixture
def shop_with(checkout_database: str, redis_url: str, provider: Payments) -> Opening:
    @asynccontextmanager
    async def opened(**changes: Any) -> AsyncIterator[Shop]:
        settings = settings_for(checkout_database, redis_url, changes.pop("url", provider.program.url), **changes)
        async with running(settings, provider) as shop:
            yield shop

    return opened


@dataclass
class Load:
    """Orders of one unit each at a steady rate, whatever becomes of those before."""

    shop: Shop
    sku: str
    told: list[tuple[float, float, httpx.Response]] = field(default_factory=list)  # when, after how long, what
    _under_way: set[asyncio.Task[None]] = field(default_factory=set)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        sending = asyncio.create_task(self._send())
        try:
            yield
        finally:
            sending.cancel()
            await asyncio.gather(sending, *self._under_way, return_exceptions=True)

    async def _send(self) -> None:
        while True:
            task = asyncio.create_task(self._order())
            self._under_way.add(task)
            task.add_done_callback(self._under_way.discard)
            await asyncio.sleep(NOW_AND_THEN_S)

    async def _order(self) -> None:
        started = monotonic()
        answer = await self.shop.order(lines=[{"sku": self.sku, "quantity": 1}])
        self.told.append((started, monotonic() - started, answer))

    def statuses(self, since: float = 0.0, to: float = float("inf")) -> list[int]:
        return [answer.status_code for at, _, answer in self.told if since <= at < to]


@pytest.mark.parametrize("url", ["stopped", "http://payments.invalid"])
async def test_without_a_provider_an_order_is_refused_and_leaves_nothing_behind(
    shop_with: Opening, provider: Payments, url: str
) -> None:
    await provider.program.end(signal.SIGKILL)
    async with shop_with(**({} if url == "stopped" else {"url": url})) as shop:
        sku = f"AWAY-{url[:4].upper()}"
        await shop.product(sku, stock=3)

        answer = await shop.order(f"away-{url[:4]}", lines=[{"sku": sku, "quantity": 3}])

        assert (answer.status_code, answer.json()["code"]) == (503, "payment_provider_unavailable")
        assert int(answer.headers["Retry-After"]) >= 1
        assert await shop.stock(sku) == (3, 0, 0)


async def test_when_the_provider_is_back_the_same_key_places_the_order(shop_with: Opening, provider: Payments) -> None:
    async with shop_with() as shop:
        await shop.product("BACK", stock=1)
        await provider.program.end(signal.SIGKILL)
        first = await shop.order("back", lines=[{"sku": "BACK", "quantity": 1}])
        await provider.program.start()

        second = await shop.order("back", lines=[{"sku": "BACK", "quantity": 1}])

        assert (first.status_code, second.status_code) == (503, 201)
        assert len(await shop.captures(second.json()["id"])) == 1


async def test_an_outage_under_load_ends_in_fast_refusals_few_calls_and_an_early_recovery(
    shop_with: Opening, provider: Payments
) -> None:
    async with shop_with() as shop:
        await shop.product("OUTAGE", stock=100_000)
        load = Load(shop, "OUTAGE")
        async with load.running():
            await until(lambda: told(load, 201))
            calls = sent()
            await provider.program.end(signal.SIGKILL)
            down_at = monotonic()
            await until(is_open, OPEN_WITHIN_S)
            assert not await breaker_is(shop, "closed")
            opened_at = monotonic()
            await asyncio.sleep(10)
            up_at = monotonic()
            during = sent() - calls
            await provider.program.start()
            await until(lambda: breaker_is(shop, "closed"), CLOSED_WITHIN_S)
            closed_at = monotonic()
            await until(lambda: told(load, 201, since=closed_at))

        refused = sorted(took for at, took, _ in load.told if opened_at + 1 < at < up_at)
        assert set(load.statuses(opened_at + 1, up_at)) == {503}
        assert refused[len(refused) // 2] < 0.25, "half of them at once, on a machine that does other things too"
        assert during <= 1.1 * len(load.statuses(down_at, up_at))
        assert during < 100, "the breaker lets next to nothing through"
        later = [answer for at, _, answer in load.told if at > closed_at + 1]
        assert not any("payment_provider_unavailable" in answer.text for answer in later)
        await books_balance(shop, load, "OUTAGE")


async def test_a_frozen_provider_is_found_out_before_the_first_charge_has_timed_out(
    shop_with: Opening, provider: Payments
) -> None:
    async with shop_with(payments_timeout_s=8.0, lease_s=20.0) as shop:
        await shop.product("FROZEN", stock=100_000)
        load = Load(shop, "FROZEN")
        async with load.running():
            await until(lambda: told(load, 201))
            assert provider.program.process is not None
            provider.program.process.send_signal(signal.SIGSTOP)
            await until(is_open, OPEN_WITHIN_S)
            provider.program.process.send_signal(signal.SIGCONT)
            thawed_at = monotonic()
            await until(lambda: told(load, 201, since=thawed_at), CLOSED_WITHIN_S)

        await books_balance(shop, load, "FROZEN")


@pytest.mark.parametrize(
    "fault",
    [
        "charge_then_truncated",
        "charge_then_wrong_amount",
        "charge_then_wrong_currency",
        "charge_then_other_order",
        "charge_then_drip",
    ],
)
async def test_an_answer_that_cannot_be_believed_is_unknown_until_the_truth_is_told(
    shop_with: Opening, provider: Payments, fault: str
) -> None:
    sku = fault.upper().replace("_", "-")
    async with shop_with() as shop:
        await shop.product(sku, stock=1)
        await provider.faults(**{fault: True})

        answer = await shop.order(lines=[{"sku": sku, "quantity": 1}])
        order_id = answer.json()["id"]
        await provider.faults()
        await until(lambda: status_is(shop, order_id, "completed"))

        assert (answer.status_code, answer.json()["status"]) == (202, "payment_unknown")
        assert len(await shop.captures(order_id)) == 1
        assert await shop.stock(sku) == (0, 0, 1)


@pytest.mark.parametrize(("fault", "status"), [("too_many", 503), ("bad_gateway", 202)])
async def test_a_provider_that_turns_callers_away(
    shop_with: Opening, provider: Payments, fault: str, status: int
) -> None:
    """429 says that nothing happened; what a gateway says after a 502 is anybody's guess."""
    sku = f"AWAY-{fault}".upper().replace("_", "-")
    async with shop_with() as shop:
        await shop.product(sku, stock=1)
        await provider.faults(**{fault: True})

        answer = await shop.order(fault, lines=[{"sku": sku, "quantity": 1}])
        stock = await shop.stock(sku)
        await provider.faults()
        again = await shop.order(fault, lines=[{"sku": sku, "quantity": 1}])
        await until(lambda: status_is(shop, again.json()["id"], "completed"))

        assert answer.status_code == status
        assert stock == ((1, 0, 0) if status == 503 else (0, 1, 0))
        assert len(await shop.captures(again.json()["id"])) == 1


async def books_balance(shop: Shop, load: Load, sku: str) -> None:
    """Every order is final, and stock, orders and the provider's ledger agree."""
    await until(lambda: nothing_is_open(shop), 60)

    completed = await shop.row(
        "SELECT count(*) FROM orders JOIN order_lines ON order_id = id WHERE sku = :sku AND status = 'completed'",
        sku=sku,
    )
    items = (await shop.payments.http.get("/_sandbox/ledger")).json()["items"]
    assert await shop.stock(sku) == (100_000 - completed, 0, completed)
    assert sum(item["captured"] > 0 for item in items) == completed
    assert len({item["order_id"] for item in items}) == len(items), "nobody pays twice"
    assert load.statuses().count(201) <= completed


async def nothing_is_open(shop: Shop) -> bool:
    open_ones: int = await shop.row(
        "SELECT count(*) FROM orders WHERE status IN ('pending', 'payment_unknown', 'requires_action')"
    )
    return open_ones == 0


async def breaker_is(shop: Shop, state: str) -> bool:
    checks = (await shop.http.get("/health")).json()["checks"]
    return bool(checks["payments:breaker"][0]["observedValue"] == state)


async def is_open() -> bool:
    return REGISTRY.get_sample_value("orderstream_payment_breaker") == State.OPEN


async def told(load: Load, status: int, since: float = 0.0) -> bool:
    return status in load.statuses(since)


async def status_is(shop: Shop, order_id: str, status: str) -> bool:
    found: str = (await shop.get(f"/v1/orders/{order_id}")).json()["status"]
    return found == status


def sent() -> float:
    """Calls to the provider so far, of all lanes."""
    return sum(
        sample.value
        for metric in metrics.PAYMENT_CALLS.collect()
        for sample in metric.samples
        if sample.name.endswith("_total")
    )
