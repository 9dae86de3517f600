"""What the sandbox does wrong on purpose, and the dice that decide when."""

import asyncio
import math
import random
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeAlias

MAX_LATENCY_MS = 600_000
MAX_SECONDS = 86_400.0

Loss: TypeAlias = Literal["hang", "reset", "500", "drip", "truncated", "wrong_amount", "wrong_currency", "other_order"]


class FaultError(ValueError):
    """The settings make no sense; `field` says which one."""

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(f"{name} {problem}")
        self.field = name


@dataclass(frozen=True)
class Faults:
    """Rates are probabilities from 0 to 1 (true is 1, false is 0), diced anew for each request.

    latency_ms         every API request waits this long before anything is done (its key is in use meanwhile)
    refuse             the connection is reset before anything is done: no charge, the key stays free
    decline_rate       a charge that would succeed is declined with `generic_decline`
    charge_then_hang   done and journalled, then no answer until the client goes or the fault ends
    charge_then_reset  done and journalled, then the connection is reset
    charge_then_500    done and journalled, then answered 500; the key's stored answer is the true one
    charge_then_drip   done and journalled, then answered with one byte a second
    charge_then_…      done and journalled, then answered with half of the JSON (`truncated`), with another amount,
                       with another currency, or with another order's id
    too_many           429 with `Retry-After: 1` before anything is done
    bad_gateway        502 with a page of HTML before anything is done
    seed               the same seed gives the same decisions to the same sequence of requests
    for_s              after this many seconds all of it ends by itself

    The `charge_then_…` hit the request that moves money (create with confirm, confirm, refund),
    whatever its outcome, and never a replay: who asks again with the same key learns what happened.
    """

    latency_ms: int = 0
    charge_then_hang: float = 0.0
    charge_then_reset: float = 0.0
    charge_then_500: float = 0.0
    charge_then_drip: float = 0.0
    charge_then_truncated: float = 0.0
    charge_then_wrong_amount: float = 0.0
    charge_then_wrong_currency: float = 0.0
    charge_then_other_order: float = 0.0
    too_many: float = 0.0
    bad_gateway: float = 0.0
    refuse: float = 0.0
    decline_rate: float = 0.0
    seed: int | None = None
    for_s: float | None = None


LOSSES: dict[str, Loss] = {
    "charge_then_hang": "hang",
    "charge_then_reset": "reset",
    "charge_then_500": "500",
    "charge_then_drip": "drip",
    "charge_then_truncated": "truncated",
    "charge_then_wrong_amount": "wrong_amount",
    "charge_then_wrong_currency": "wrong_currency",
    "charge_then_other_order": "other_order",
}
RATES = (*LOSSES, "refuse", "too_many", "bad_gateway", "decline_rate")
CALM = Faults()


def read_faults(body: object) -> Faults:
    """Strictly: unknown names, other types and values outside their limits raise FaultError."""
    if not isinstance(body, dict):
        raise FaultError("body", "must be a JSON object")
    known = Faults.__dataclass_fields__
    for name in body:
        if name not in known:
            raise FaultError(str(name), f"is unknown: use {', '.join(known)}")
    values: dict[str, Any] = {name: _rate(name, body[name]) for name in RATES if name in body}
    if "latency_ms" in body:
        values["latency_ms"] = _whole(body["latency_ms"], "latency_ms", 0, MAX_LATENCY_MS)
    if body.get("seed") is not None:
        values["seed"] = _whole(body["seed"], "seed", 0, 2**63 - 1)
    if body.get("for_s") is not None:
        values["for_s"] = _seconds(body["for_s"])
    return Faults(**values)


def _rate(name: str, value: object) -> float:
    if isinstance(value, bool | int | float) and 0 <= value <= 1:
        return float(value)
    raise FaultError(name, "must be true, false or a probability from 0 to 1")


def _whole(value: object, name: str, smallest: int, largest: int) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and smallest <= value <= largest:
        return value
    raise FaultError(name, f"must be a whole number from {smallest} to {largest}")


def _seconds(value: object) -> float:
    if (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
        and 0 < value <= MAX_SECONDS
    ):
        return float(value)
    raise FaultError("for_s", f"must be a number of seconds, more than 0 and at most {MAX_SECONDS:.0f}")


@dataclass
class FaultPlan:
    """The faults in force. One dice draw per rate that is not 0, in the order in which requests arrive."""

    monotonic: Callable[[], float] = time.monotonic
    _faults: Faults = CALM
    _dice: random.Random = field(default_factory=random.Random)
    _until: float = math.inf
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def set(self, faults: Faults) -> None:
        self._faults = CALM if faults == CALM else faults
        self._dice = random.Random(faults.seed)  # noqa: S311 - dice for tests, not for secrets
        self._until = math.inf if faults.for_s is None else self.monotonic() + faults.for_s
        self._changed.set()
        self._changed = asyncio.Event()

    @property
    def active(self) -> Faults:
        if self._faults is not CALM and self.monotonic() >= self._until:
            self.set(CALM)
        return self._faults

    def describe(self) -> dict[str, Any]:
        faults = self.active
        left = None if math.isinf(self._until) else round(self._until - self.monotonic(), 3)
        return {**asdict(faults), "active": faults != CALM, "ends_in_s": left}

    def hits(self, rate: float) -> bool:
        return rate > 0 and self._dice.random() < rate

    def loss(self) -> Loss | None:
        """What becomes of the answer to a request that has just moved money."""
        faults = self.active
        if faults is CALM:
            return None
        return next((loss for name, loss in LOSSES.items() if self.hits(getattr(faults, name))), None)

    async def ended(self) -> None:
        """Returns when the present faults are replaced, cleared or over."""
        changed = self._changed
        left = None if math.isinf(self._until) else max(0.0, self._until - self.monotonic())
        try:
            await asyncio.wait_for(changed.wait(), left)
        except TimeoutError:
            return  # ran out by itself: `active` clears it at the next look
