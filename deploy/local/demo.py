"""One order through the running platform: the answer, then every effect as it arrives."""

import asyncio
import json
import shlex
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx

from deploy.local.errors import PlatformError
from deploy.local.settings import Settings

POLL_S = 0.01
PATIENCE_S = 30.0
CURRENCY = "EUR"

Look = Callable[[], Awaitable[str]]


def show(settings: Settings) -> None:
    """Place an order and tell what happens to it; nothing is started for it."""
    path = settings.run_dir / "env"
    if not path.exists():
        raise PlatformError(f"Nothing is ready in {settings.run_dir}: make up starts it.")
    try:
        asyncio.run(_show(read_environment(path)))
    except httpx.HTTPError as error:
        raise PlatformError(f"The platform does not answer ({error!r}): see make status and the logs.") from error


def read_environment(path: Path) -> dict[str, str]:
    """The values of an env file."""
    words = shlex.split(path.read_text(), comments=True)
    return dict(word.split("=", 1) for word in words)


async def _show(env: dict[str, str]) -> None:
    headers = {"Authorization": f"Bearer {env['OPS_KEY']}"}
    async with httpx.AsyncClient(headers=headers, timeout=10) as client:
        counted = await _orders(client, env)
        order = await _place(client, env)
        answered = time.monotonic()
        effects: dict[str, Look] = {
            "mail": lambda: _mail(client, env, order),
            "fulfilment": lambda: _fulfilment(client, env, order),
            "analytics": lambda: _analytics(client, env, counted),
        }
        if env["INBOX_URL"]:
            effects["inbox"] = lambda: _inbox(client, env, order)
        print("\nAnd after the answer:", flush=True)
        missing = await asyncio.gather(*(_await(name, look, answered) for name, look in effects.items()))
    if any(missing):
        raise PlatformError(f"Not seen within {PATIENCE_S:.0f} s: {', '.join(filter(None, missing))}.")


async def _place(client: httpx.AsyncClient, env: dict[str, str]) -> dict[str, Any]:
    body = {
        "customer": {"email": f"demo-{uuid4().hex[:8]}@example.com", "name": "Demo"},
        "currency": CURRENCY,
        "lines": [{"sku": "SKU-0001", "quantity": 2}, {"sku": "SKU-0042", "quantity": 1}],
        "payment_method": "pm_card_visa",
        "shipping_address": {
            "line1": "Hauptstr. 1",
            "city": "Berlin",
            "postal_code": "10115",
            "country": "DE",
        },
    }
    headers = {"Authorization": f"Bearer {env['API_KEY']}", "Idempotency-Key": f"demo-{uuid4()}"}
    print(f"POST {env['CHECKOUT_URL']}/v1/orders\n{json.dumps(body, indent=2)}\n", flush=True)
    began = time.monotonic()
    response = await client.post(f"{env['CHECKOUT_URL']}/v1/orders", json=body, headers=headers)
    spent_ms = (time.monotonic() - began) * 1000
    print(f"{response.status_code} after {spent_ms:.0f} ms\n{json.dumps(response.json(), indent=2)}", flush=True)
    if response.status_code != httpx.codes.CREATED:
        raise PlatformError("The order was not completed: its answer above says why.")
    order: dict[str, Any] = response.json()
    return order


async def _await(name: str, look: Look, since: float) -> str:
    """Print the effect when it is there; return the name of one that never comes."""
    while time.monotonic() - since < PATIENCE_S:
        if found := await look():
            print(f"{(time.monotonic() - since) * 1000:6.0f} ms  {name:<10} {found}", flush=True)
            return ""
        await asyncio.sleep(POLL_S)
    return name


async def _mail(client: httpx.AsyncClient, env: dict[str, str], order: dict[str, Any]) -> str:
    for message in await _items(client, f"{env['EMAIL_URL']}/v1/messages", order_id=order["id"]):
        if message["status"] == "sent":
            return f"{message['kind']} sent to {message['to']}: {message['subject']}"
    return ""


async def _inbox(client: httpx.AsyncClient, env: dict[str, str], order: dict[str, Any]) -> str:
    for mail in await _items(client, f"{env['INBOX_URL']}/api/messages", to=order["customer"]["email"]):
        return f"{mail['subject']} ({env['INBOX_URL']}/messages/{mail['id']})"
    return ""


async def _fulfilment(client: httpx.AsyncClient, env: dict[str, str], order: dict[str, Any]) -> str:
    for item in await _items(client, f"{env['WAREHOUSE_URL']}/v1/fulfilments", order_id=order["id"]):
        return f"{item['id']} {item['status']}, {len(item['lines'])} lines to pick"
    return ""


async def _analytics(client: httpx.AsyncClient, env: dict[str, str], counted: int) -> str:
    now = await _orders(client, env)
    return f"{now} orders in {CURRENCY}, before it {counted}" if now > counted else ""


async def _orders(client: httpx.AsyncClient, env: dict[str, str]) -> int:
    rows = await _items(client, f"{env['ANALYTICS_URL']}/v1/summary")
    return sum(int(row["orders"]) for row in rows if row["currency"] == CURRENCY)


async def _items(client: httpx.AsyncClient, url: str, **query: str) -> list[dict[str, Any]]:
    response = await client.get(url, params=query)
    response.raise_for_status()
    items: list[dict[str, Any]] = response.json()["items"]
    return items
