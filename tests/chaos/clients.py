"""The customers: they order, ask again until they know, and remember everything that they were told."""

import asyncio
import json
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx

ASK_AGAIN_S, ASK_AGAIN_AT_MOST_S = 0.5, 5.0  # twice as long after each time: a crowd that hurries is a fault of its own
ANSWER_WITHIN_S = 30.0
PATIENCE_S = 90.0  # beyond the end of the faults, for a final answer
FINAL = frozenset({201, 402, 409, 422})
ACCEPTED = frozenset({201, 202, 402})
GIVEN_BACK = frozenset({200, 201, 409, 422})
METHODS = {
    "pm_card_visa": 88,
    "pm_card_visa_chargeDeclined": 5,
    "pm_card_visa_chargeDeclinedInsufficientFunds": 3,
    "pm_card_authenticationRequired": 4,
}
HABITS = {"patient": 60, "twice": 12, "gone": 10, "other_body": 6, "cancels": 6, "refunds": 6}


@dataclass(frozen=True, slots=True)
class Told:
    """One answer; status 0 is none at all."""

    at_s: float
    seconds: float
    status: int
    body: Mapping[str, Any]


@dataclass
class Customer:
    """One order, wanted once. `habit` says what else they do."""

    number: int
    key: str
    habit: str
    body: dict[str, Any]
    told: list[Told] = field(default_factory=list)
    told_of_other: list[Told] = field(default_factory=list)  # the same key with another body
    given_back: list[Told] = field(default_factory=list)  # of a cancellation or refund

    @property
    def final(self) -> Told | None:
        """The first answer that settles the matter."""
        return next((one for one in self.told if is_final(one)), None)

    def as_json(self) -> dict[str, Any]:
        """For the evidence."""
        lists = {"told": self.told, "told_of_other": self.told_of_other, "given_back": self.given_back}
        said = {
            name: [[round(one.at_s, 3), round(one.seconds, 3), one.status, one.body] for one in some]
            for name, some in lists.items()
        }
        return {"key": self.key, "habit": self.habit, "body": self.body, **said}


def is_final(answer: Told) -> bool:
    """Whether nothing else can come of the same request."""
    return answer.status in FINAL and answer.body.get("code") != "idempotency_key_in_use"


def customers(seed: int, count: int) -> list[Customer]:
    """The same customers for the same seed."""
    dice = random.Random(f"customers of {seed}")  # noqa: S311 - to be repeated, not to be secret
    return [_customer(seed, number, dice) for number in range(count)]


def _customer(seed: int, number: int, dice: random.Random) -> Customer:
    skus = ["SKU-0001" if dice.random() < 0.3 else f"SKU-{dice.randint(2, 40):04}"]
    skus += [f"SKU-{dice.randint(41, 80):04}"] if dice.random() < 0.3 else []
    skus = ["LIMITED-1"] if dice.random() < 0.2 else skus
    body = {
        "customer": {"email": f"customer{number}@example.com"},
        "currency": "EUR",
        "lines": [{"sku": sku, "quantity": dice.randint(1, 3)} for sku in skus],
        "payment_method": dice.choices(list(METHODS), list(METHODS.values()))[0],
    }
    habit = dice.choices(list(HABITS), list(HABITS.values()))[0]
    return Customer(number, f"chaos-{seed}-{number}", habit, body)


class Crowd:
    """Sends customers to checkout at random times, whether or not those before them have been served."""

    def __init__(self, env: Mapping[str, str], seed: int) -> None:
        """`env` is the platform's."""
        headers = {"Authorization": f"Bearer {env['API_KEY']}"}
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=50)
        self._http = httpx.AsyncClient(
            base_url=env["CHECKOUT_URL"], headers=headers, timeout=ANSWER_WITHIN_S, limits=limits, trust_env=False
        )
        self._sandbox = httpx.AsyncClient(base_url=env["PAYMENTS_URL"], timeout=ANSWER_WITHIN_S, trust_env=False)
        self._dice = random.Random(f"arrivals of {seed}")  # noqa: S311 - to be repeated, not to be secret
        self._began = time.monotonic()

    async def arrive(self, everybody: list[Customer], rate: float) -> None:
        """Let them come, `rate` a second on average; returns when everybody knows, or has lost patience."""
        self._began = due = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for customer in everybody:
                due += self._dice.expovariate(rate)
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                group.create_task(self._live(customer))

    async def come_back(self, everybody: list[Customer]) -> None:
        """Those who had gone ask after all: what they are told must be true as well."""
        await asyncio.gather(*(self._insist(customer) for customer in everybody if customer.final is None))

    async def close(self) -> None:
        """Close every connection."""
        await self._http.aclose()
        await self._sandbox.aclose()

    async def _live(self, customer: Customer) -> None:
        if customer.habit == "gone":
            await self._order(customer)
            return
        if customer.habit == "twice":
            await asyncio.gather(self._order(customer), self._order(customer))
        if customer.habit == "other_body":
            await self._order(customer)
            other = {**customer.body, "metadata": {"other": "yes"}}
            customer.told_of_other.append(await self._post("/v1/orders", customer.key, other))
        await self._insist(customer)
        if customer.final and customer.final.status == httpx.codes.CREATED:
            await self._give_back(customer, customer.final.body["id"])

    async def _insist(self, customer: Customer) -> None:
        """Ask again, with the same key, until there is a final answer."""
        give_up_at = time.monotonic() + PATIENCE_S
        authenticated, pause_s = False, ASK_AGAIN_S
        while customer.final is None and time.monotonic() < give_up_at:
            answer = await self._order(customer)
            if answer.body.get("status") == "requires_action" and customer.number % 2 and not authenticated:
                authenticated = await self._authenticate(answer.body)
            if not is_final(answer):
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, ASK_AGAIN_AT_MOST_S)

    async def _give_back(self, customer: Customer, order_id: str) -> None:
        path = {"cancels": "cancel", "refunds": "refunds"}.get(customer.habit)
        give_up_at, pause_s = time.monotonic() + PATIENCE_S, ASK_AGAIN_S
        while path and time.monotonic() < give_up_at:
            answer = await self._post(f"/v1/orders/{order_id}/{path}", f"{customer.key}-back", {})
            customer.given_back.append(answer)
            if answer.status in GIVEN_BACK and answer.body.get("code") != "idempotency_key_in_use":
                return
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, ASK_AGAIN_AT_MOST_S)

    async def _authenticate(self, order: Mapping[str, Any]) -> bool:
        intent = order["payment"]["client_secret"].partition("_secret")[0]
        try:
            answer = await self._sandbox.post(f"/_sandbox/3ds/{intent}", json={"outcome": "complete"})
        except httpx.TransportError:
            return False
        return answer.is_success

    async def _order(self, customer: Customer) -> Told:
        answer = await self._post("/v1/orders", customer.key, customer.body)
        customer.told.append(answer)
        return answer

    async def _post(self, path: str, key: str, body: Mapping[str, Any]) -> Told:
        began = time.monotonic()
        status, said = 0, b""
        try:
            answer = await self._http.post(path, json=dict(body), headers={"Idempotency-Key": key})
            status, said = answer.status_code, answer.content
        except httpx.TransportError as error:
            said = json.dumps({"error": repr(error)}).encode()
        return Told(began - self._began, time.monotonic() - began, status, json.loads(said or b"{}"))


def contradictions(everybody: list[Customer], orders: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """I5, I6: whatever customers were told, and what the books say (`orders` by id), must fit together."""
    found = []
    for customer in everybody:
        found += _about(customer, orders)
        # Whichever body came first has the key; the other one is refused for ever.
        if any(one.status in ACCEPTED for one in customer.told) and any(
            one.status in ACCEPTED for one in customer.told_of_other
        ):
            found.append(f"I5 {customer.key}: two bodies under one key were both accepted")
    return found


def _about(customer: Customer, orders: Mapping[str, Mapping[str, Any]]) -> list[str]:
    final = [one for one in customer.told if is_final(one)]
    if not final:
        return [f"I6 {customer.key}: no final answer, the last one was {customer.told[-1]}"]
    said = {json.dumps(_without_request(one.body), sort_keys=True) for one in final}
    found = [f"I5 {customer.key}: {len(said)} different final answers: {sorted(said)}"] if len(said) > 1 else []
    names = {one.body["id"] for one in customer.told if "id" in one.body}
    found += [f"I5 {customer.key}: {len(names)} orders: {sorted(names)}"] if len(names) > 1 else []
    answer = final[0]
    order = orders.get(str(answer.body.get("id") or answer.body.get("order_id") or ""))
    status = order["status"] if order else None
    if answer.status == httpx.codes.CREATED and status not in {"completed", "cancelled"}:
        found.append(f"I6 {customer.key} was told 201, and the order is {status}: {answer.body.get('id')}")
    if answer.status == httpx.codes.PAYMENT_REQUIRED and status not in {"failed", "expired"}:
        found.append(f"I6 {customer.key} was told 402, and the order is {status}: {answer.body.get('order_id')}")
    cancelled = any(one.status == httpx.codes.OK for one in customer.given_back) and customer.habit == "cancels"
    if cancelled and status != "cancelled":
        found.append(f"I6 {customer.key} was told that the order is cancelled, and it is {status}")
    return found


def _without_request(body: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in body.items() if name != "request_id"}
