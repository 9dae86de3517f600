"""What clients trust us with stays where it belongs: in no log, no metric, no error, and no name of a key in Redis."""

import asyncio
import json
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from tests.support.platform import URLS, Platform, all_ready, until

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]

CARD = "4242424242424242"
SPACED = "4242 4242 4242 4242"
TOKEN = "pm_card_visa"
AUTHENTICATE = "pm_card_authenticationRequired"


@dataclass
class Visitor:
    """Sends good and bad requests, and keeps what it gave away and every error that it got."""

    http: httpx.AsyncClient
    api_key: str
    email: str = f"secret-{secrets.token_hex(6)}@example.com"
    wrong_key: str = field(default_factory=lambda: "osk_" + secrets.token_urlsafe(32))
    errors: list[str] = field(default_factory=list)

    async def post(self, content: object, path: str = "/v1/orders", **headers: str) -> httpx.Response:
        sent = {
            "Authorization": f"Bearer {self.api_key}",
            "Idempotency-Key": secrets.token_hex(8),
            "Content-Type": "application/json",
            **{name.replace("_", "-"): value for name, value in headers.items()},
        }
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        return self._noted(await self.http.post(path, content=body, headers=sent))

    async def get(self, path: str, key: str | None = None) -> httpx.Response:
        return self._noted(await self.http.get(path, headers={"Authorization": f"Bearer {key or self.api_key}"}))

    def order(self, **changes: Any) -> dict[str, Any]:
        return {
            "customer": {"email": self.email, "name": "Ann"},
            "currency": "EUR",
            "lines": [{"sku": "SKU-0001", "quantity": 1}],
            "payment_method": TOKEN,
            **changes,
        }

    def _noted(self, answer: httpx.Response) -> httpx.Response:
        if answer.is_error:
            self.errors.append(f"{answer.headers} {answer.text}")
        return answer


async def test_secrets_that_come_with_good_and_bad_requests_are_nowhere_afterwards(shop: Platform) -> None:
    env = shop.env
    async with httpx.AsyncClient(base_url=env["CHECKOUT_URL"], timeout=30) as http:
        visitor = Visitor(http, env["API_KEY"])
        client_secret = await good_requests(visitor)
        await bad_requests(visitor)
        await requests_during_failures(visitor, shop)
    await until(lambda: mailed(env, visitor.email), timeout_s=60)

    planted = {
        "card": [CARD, SPACED, SPACED.replace(" ", "-")],
        "e-mail": [visitor.email],
        "API key": [env["API_KEY"], env["OPS_KEY"], visitor.wrong_key],
        "client secret": [client_secret],
        "our own secrets": own_secrets(shop.run_dir),
    }
    places = await artefacts(shop) | {"errors": "\n".join(visitor.errors)}
    found = [
        f"{what} in {place}: …{text[max(0, text.index(one) - 150) : text.index(one)]}"
        for place, text in places.items()
        for what, secrets_ in planted.items()
        for one in secrets_
        if one in text
    ]
    assert found == []
    assert "Traceback" not in places["errors"]
    assert len(visitor.errors) > 15, "there was something to tell"
    assert "checkout.log" in places


async def good_requests(visitor: Visitor) -> str:
    """Orders that succeed, and one that waits for the customer: its client secret."""
    assert (await visitor.post(visitor.order())).status_code == 201
    waiting = await visitor.post(visitor.order(payment_method=AUTHENTICATE))
    assert waiting.status_code == 202
    client_secret: str = waiting.json()["payment"]["client_secret"]
    assert client_secret
    await visitor.get(f"/v1/orders/{waiting.json()['id']}")
    return client_secret


async def bad_requests(visitor: Visitor) -> None:
    """The same secrets where they do not belong."""
    order = visitor.order()
    for changes in (
        {"customer": {"email": visitor.email, "name": CARD}},
        {"customer": {"email": visitor.email + " ", "name": SPACED}},
        {"metadata": {SPACED: "x"}},
        {"payment_method": CARD},
        {"cvv": "123", CARD: visitor.email},
        {"currency": CARD},
        {"lines": [{"sku": CARD, "quantity": CARD}]},
        {"payment_method": "pm_card_visa_chargeDeclined"},
    ):
        assert (await visitor.post({**order, **changes})).is_client_error
    text = json.dumps(order)
    for content in (text[:-1], text.replace("Ann", SPACED)[:-1], text + CARD, CARD, f'"{visitor.email}"'):
        assert (await visitor.post(content.encode())).is_client_error
    for header in ("traceparent", "User_Agent", "Idempotency_Key", "Content_Type", "Host"):
        await visitor.post({}, **{header: CARD})
    # The id of a request is the client's own word, and it is told that word again; nobody else is.
    await visitor.http.post("/v1/orders", content=b"{", headers={"X-Request-Id": CARD, "Host": "checkout"})
    await visitor.post(order, Authorization=f"Bearer {visitor.wrong_key}")
    await visitor.post(order, Authorization=f"Basic {visitor.wrong_key}")
    for path in (
        f"/v1/orders/{CARD}",
        f"/v1/products/{CARD}",
        f"/{visitor.email}",
        f"/v1/orders?starting_after={CARD}",
    ):
        await visitor.get(path)
        await visitor.get(path, visitor.wrong_key)
    await visitor.get(f"/v1/orders?api_key={visitor.api_key}", "none")
    await visitor.post(b"{}", "/v1/webhooks/payments", Stripe_Signature=f"t=1,v1={CARD}")


async def requests_during_failures(visitor: Visitor, shop: Platform) -> None:
    """What is logged when servers are away has the most to tell."""
    async with httpx.AsyncClient(base_url=shop.env["PAYMENTS_URL"]) as payments:
        for fault in ("charge_then_500", "charge_then_reset"):
            await payments.post("/_sandbox/faults", json={fault: True})
            assert (await visitor.post(visitor.order())).status_code in {202, 503}
        await payments.post("/_sandbox/faults", json={})
    shop.kill("postgres")
    answers = await asyncio.gather(*(visitor.post(visitor.order()) for _ in range(5)))
    assert {answer.status_code for answer in answers} <= {201, 202, 503}
    await until(lambda: all_ready(shop), timeout_s=60)


async def mailed(env: dict[str, str], email: str) -> bool:
    """Whether the address has been all the way to the mail server."""
    async with httpx.AsyncClient() as client:
        return email in (await client.get(f"{env['INBOX_URL']}/api/messages")).text


async def artefacts(shop: Platform) -> dict[str, str]:
    """Everything that people may read who may not read orders."""
    found = {path.name: path.read_text(errors="replace") for path in (shop.run_dir / "logs").iterdir()}
    async with httpx.AsyncClient() as client:
        for name in URLS[:4]:
            for path in ("/metrics", "/health", "/openapi.json"):
                found[f"{name} {path}"] = (await client.get(shop.env[f"{name}_URL"] + path)).text
    async with Redis.from_url(shop.env["REDIS_URL"], decode_responses=True) as redis:
        found["names in Redis"] = " ".join([key async for key in redis.scan_iter()])
    return found


def own_secrets(run_dir: Path) -> list[str]:
    """Passwords of the databases, the provider's key and the secret of its webhooks."""

    def values(node: object) -> list[str]:
        if isinstance(node, dict):
            return [one for value in node.values() for one in values(value)]
        return [node] if isinstance(node, str) else []

    return values(json.loads((run_dir / "secrets.json").read_text()))
