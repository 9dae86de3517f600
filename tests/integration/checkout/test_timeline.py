"""What happened to an order, as its client reads it: checkout's own steps, and what the services behind it say."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web
from sqlalchemy import text

from services.warehouse.__main__ import MIGRATIONS as WAREHOUSE
from services.warehouse.handlers import HANDLERS
from shared.bus.arrivals import Arrival
from shared.bus.delivery import Deliverer
from shared.runtime.db import Database
from shared.runtime.migrations import upgrade
from tests.integration.checkout.changed_requests import headers
from tests.integration.checkout.conftest import Shop, running, seeded, settings_for
from tests.integration.sandboxes.programs import Payments, Program
from tests.support.servers import free_port

API_KEY_OF_SERVICES = "services-key"


class Babbler:
    """A service that answers whatever it is told to."""

    def __init__(self) -> None:
        self.status, self.body = 200, b""
        self.port = free_port()

    async def answer(self, _: web.Request) -> web.Response:
        return web.Response(status=self.status, body=self.body, content_type="application/json")


@pytest_asyncio.fixture(scope="module")
async def warehouse_url(new_database: Callable[[], Awaitable[str]]) -> str:
    url = await new_database()
    await upgrade(url, WAREHOUSE)
    return url


@pytest_asyncio.fixture(scope="module")
async def warehouse(warehouse_url: str, redis_url: str) -> AsyncIterator[Program]:
    """The real one, as a process; it hears of nothing but what tests deliver to it."""
    port = free_port()
    environment = {
        "WAREHOUSE_PORT": str(port),
        "WAREHOUSE_DATABASE_URL": warehouse_url,
        "WAREHOUSE_REDIS_URL": f"{redis_url}/7",
        "WAREHOUSE_API_KEYS": API_KEY_OF_SERVICES,
    }
    program = Program("services.warehouse", environment, f"http://127.0.0.1:{port}")
    await program.start()
    yield program
    assert program.process
    program.process.terminate()
    await program.process.wait()


@pytest_asyncio.fixture(scope="module")
async def babbler() -> AsyncIterator[Babbler]:
    made = Babbler()
    app = web.Application()
    app.router.add_get("/v1/deliveries", made.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", made.port).start()
    yield made
    await runner.cleanup()


@pytest_asyncio.fixture(scope="module")
async def told(
    new_database: Callable[[], Awaitable[str]],
    redis_url: str,
    payments_server: Payments,
    warehouse: Program,
    babbler: Babbler,
) -> AsyncIterator[Shop]:
    """A checkout that knows a warehouse that works, an email that is down, and an analytics that babbles."""
    addresses = f"warehouse={warehouse.url}, email=http://127.0.0.1:1,analytics=http://127.0.0.1:{babbler.port}/"
    database = await seeded(new_database, redis_url)
    settings = settings_for(
        database, redis_url, payments_server.program.url, services=addresses, services_key=API_KEY_OF_SERVICES
    )
    async with running(settings, payments_server) as shop:
        async with shop.db.transaction() as connection:
            await shop.wiring.log.subscribe(connection, "loyalty")
            await shop.wiring.log.subscribe(connection, "latecomer", from_now=True)
        yield shop


async def timeline(shop: Shop, order_id: str) -> dict[str, Any]:
    answer = await shop.get(f"/v1/orders/{order_id}/timeline")
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def test_an_order_shows_each_step_and_what_every_service_made_of_it(told: Shop, warehouse_url: str) -> None:
    order_id = (await told.order()).json()["id"]
    async with AsyncExitStack() as stack:
        theirs = Database(warehouse_url, "test", 2)
        stack.push_async_callback(theirs.close)
        async with told.db.reading() as connection:
            [logged] = await told.wiring.log.events_of(connection, order_id)
        await Deliverer(theirs, HANDLERS).deliver([Arrival(0, logged.position, logged.event)])

    seen = await timeline(told, order_id)

    assert (seen["order_id"], seen["status"]) == (order_id, "completed")
    assert [one["step"] for one in seen["steps"]] == ["reserved", "charge", "settled", "event"]
    reserved, charge, settled, event = (one["detail"] for one in seen["steps"])
    assert (reserved["to"], settled["from"], settled["to"]) == ("pending", "pending", "completed")
    assert (charge["attempt"], charge["status"], charge["amount"], charge["currency"]) == (1, "captured", 200, "EUR")
    assert charge["provider_reference"].startswith("pi_")
    assert (event["type"], event["position"]) == ("order.completed", logged.position)
    services = {one["service"]: one for one in seen["services"]}
    assert {name: one["status"] for name, one in services.items()} == {
        "warehouse": "answered",
        "email": "unreachable",
        "analytics": "unreachable",
        "loyalty": "unknown",
        "latecomer": "unknown",
    }
    [delivery] = services["warehouse"]["events"]
    assert (delivery["type"], delivery["state"], delivery["attempts"]) == ("order.completed", "done", 1)
    assert delivery["settled_at"] >= delivery["received_at"] >= seen["steps"][-1]["at"]
    [missing] = services["email"]["events"]
    assert (missing["event_id"], missing["state"]) == (delivery["event_id"], None)


async def test_a_retry_shows_its_error_and_when_it_comes(told: Shop, warehouse_url: str) -> None:
    order_id = (await told.order()).json()["id"]
    theirs = Database(warehouse_url, "test", 2)
    async with told.db.reading() as connection:
        [logged] = await told.wiring.log.events_of(connection, order_id)
    await Deliverer(theirs, HANDLERS).deliver([Arrival(0, logged.position, logged.event)])
    async with theirs.transaction() as connection:
        await connection.execute(
            text(
                "UPDATE deliveries SET state = 'retrying', attempts = 2, last_error = 'no shelf',"
                " next_attempt_at = now() + interval '1 hour', settled_at = NULL WHERE subject = :order"
            ),
            {"order": order_id},
        )
    await theirs.close()

    services = {one["service"]: one for one in (await timeline(told, order_id))["services"]}

    [delivery] = services["warehouse"]["events"]
    assert (delivery["state"], delivery["attempts"], delivery["last_error"]) == ("retrying", 2, "no shelf")
    assert delivery["next_attempt_at"] > delivery["received_at"]
    assert delivery["settled_at"] is None


async def test_refunds_are_steps_too_and_a_declined_order_ends_with_why(told: Shop) -> None:
    paid = (await told.order()).json()["id"]
    refunded = await told.http.post(f"/v1/orders/{paid}/refunds", json={"amount": 50}, headers=headers())
    declined = (await told.order(payment_method="pm_card_visa_chargeDeclined")).json()["order_id"]

    steps = (await timeline(told, paid))["steps"]
    failed = await timeline(told, declined)

    assert [one["step"] for one in steps] == ["reserved", "charge", "settled", "event", "refund", "settled", "event"]
    assert steps[4]["detail"] | {"settled_at": ""} == {
        "refund_id": refunded.json()["id"],
        "kind": "refund",
        "status": "succeeded",
        "amount": 50,
        "currency": "EUR",
        "provider_reference": refunded.json()["provider_reference"],
        "refusal_code": None,
        "settled_at": "",
    }
    assert failed["status"] == "failed"
    [charge] = [one["detail"] for one in failed["steps"] if one["step"] == "charge"]
    assert charge["decline_code"]


async def test_a_service_that_subscribed_later_is_not_shown_what_was_never_meant_for_it(told: Shop) -> None:
    old = (await told.order()).json()["id"]
    async with told.db.transaction() as connection:
        await told.wiring.log.subscribe(connection, "newest", from_now=True)
    new = (await told.order()).json()["id"]

    shown = [
        {one["service"]: one["events"] for one in (await timeline(told, order))["services"]} for order in (old, new)
    ]

    assert shown[0]["newest"] == []
    assert len(shown[1]["newest"]) == len(shown[0]["loyalty"]) == 1


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, b""),
        (200, b"[]"),
        (200, b'{"items": [{"id": 1}]}'),
        (200, b'{"items": [' + b" " * 2_000_000 + b"]}"),
        (302, b""),
        (401, b"{}"),
        (503, b'{"items": []}'),
    ],
    ids=["nothing", "a list", "other items", "two megabytes", "elsewhere", "no key", "an error"],
)
async def test_a_service_that_answers_nonsense_is_unreachable_and_no_error(
    told: Shop, babbler: Babbler, status: int, body: bytes
) -> None:
    order_id = (await told.order()).json()["id"]
    babbler.status, babbler.body = status, body

    services = {one["service"]: one["status"] for one in (await timeline(told, order_id))["services"]}

    assert services["analytics"] == "unreachable"
    assert services["warehouse"] == "answered"
