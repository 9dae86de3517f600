"""Requests with something changed in them, and what a refusal of one has to look like."""

import json
import secrets
from typing import Any

import httpx

from tests.integration.checkout.conftest import API_KEY, Shop, body

CARD = "4111111111111111"
LINE = {"sku": "SKU-0001", "quantity": 1}
CUSTOMER = {"email": "ann@example.com", "name": "Ann"}
ADDRESS = {"line1": "Hauptstr. 1", "city": "Berlin", "postal_code": "10115", "country": "DE"}
VALID = json.dumps(body())


def lines(*wanted: object) -> dict[str, Any]:
    return {"lines": [{**LINE, "quantity": one} for one in wanted]}


def customer(**changes: object) -> dict[str, Any]:
    return {"customer": {**CUSTOMER, **changes}}


def address(**changes: object) -> dict[str, Any]:
    return {"shipping_address": {**ADDRESS, **changes}}


def wanting(sku: object) -> dict[str, Any]:
    return {"lines": [{"sku": sku, "quantity": 1}]}


def headers(**changes: str | None) -> dict[str, str]:
    sent: dict[str, str | None] = {
        "Authorization": f"Bearer {API_KEY}",
        "Idempotency-Key": secrets.token_hex(8),
        "Content-Type": "application/json",
        **{name.replace("_", "-"): value for name, value in changes.items()},
    }
    return {name: value for name, value in sent.items() if value is not None}


async def post(shop: Shop, content: bytes | str, path: str = "/v1/orders", **changes: str | None) -> httpx.Response:
    return await shop.http.post(path, content=content, headers=headers(**changes))


def refused(answer: httpx.Response, status: int, code: str, pointer: str | None = None) -> dict[str, Any]:
    """Check that it is a whole problem document and return it."""
    problem: dict[str, Any] = answer.json()
    assert (answer.status_code, problem["code"]) == (status, code), answer.text
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert (problem["type"], problem["status"]) == (f"urn:orderstream:problem:{code}", status)
    assert problem["title"]
    assert problem["detail"]
    assert problem["request_id"] == answer.headers["X-Request-Id"]
    assert "Traceback" not in answer.text
    if pointer is not None:
        assert pointer in [one["pointer"] for one in problem["errors"]], answer.text
    return problem


def has_card(text: str) -> bool:
    return "11111111" in "".join(one for one in text if one.isalnum())
