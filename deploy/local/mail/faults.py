"""What the mail sandbox does wrong on purpose, and the dice that decide when."""

import math
import random
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeAlias, get_args

MAX_DELAY_MS = 600_000
MAX_SECONDS = 86_400.0
REFUSALS = range(400, 600)

Step: TypeAlias = Literal["mail", "rcpt", "data"]


class FaultError(ValueError):
    """The settings make no sense; `field` says which one."""

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(f"{name} {problem}")
        self.field = name


@dataclass(frozen=True)
class Refusal:
    """`data` refuses after the final dot; with 421 the connection is closed as well."""

    code: int
    step: Step


@dataclass(frozen=True)
class Faults:
    """All but the delay happen with the probability `rate`, diced anew for each mail.

    greeting_delay_ms  each connection waits this long for its 220
    refuse_with        {"code": 450, "step": "rcpt"}: this answer at that step; the mail is not kept
    drop_after_dot     the mail is kept, then the connection is reset instead of answering 250
    rate               from 0 to 1, normally 1
    seed               the same seed gives the same decisions to the same sequence of mails
    for_s              after this many seconds all of it ends by itself
    """

    greeting_delay_ms: int = 0
    refuse_with: Refusal | None = None
    drop_after_dot: bool = False
    rate: float = 1.0
    seed: int | None = None
    for_s: float | None = None


CALM = Faults()


def read_faults(body: object) -> Faults:
    """Strictly: unknown names, other types and values outside their limits raise FaultError."""
    if not isinstance(body, dict):
        raise FaultError("body", "must be a JSON object")
    for name in body:
        if name not in READERS:
            raise FaultError(str(name), f"is unknown: use {', '.join(READERS)}")
    return Faults(**{name: READERS[name](name, value) for name, value in body.items()})


def _delay(name: str, value: object) -> int:
    return _whole(name, value, 0, MAX_DELAY_MS)


def _seed(name: str, value: object) -> int | None:
    return None if value is None else _whole(name, value, 0, 2**63 - 1)


def _whole(name: str, value: object, smallest: int, largest: int) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and smallest <= value <= largest:
        return value
    raise FaultError(name, f"must be a whole number from {smallest} to {largest}")


def _flag(name: str, value: object) -> bool:
    if isinstance(value, bool):
        return value
    raise FaultError(name, "must be true or false")


def _rate(name: str, value: object) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1:
        return float(value)
    raise FaultError(name, "must be a probability from 0 to 1")


def _seconds(name: str, value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= MAX_SECONDS:
        return float(value)
    raise FaultError(name, f"must be a number of seconds, more than 0 and at most {MAX_SECONDS:.0f}")


def _refusal(name: str, value: object) -> Refusal | None:
    if value is None:
        return None
    if not isinstance(value, dict) or value.keys() != {"code", "step"} or value["step"] not in get_args(Step):
        raise FaultError(name, 'must be {"code": 400..599, "step": "mail", "rcpt" or "data"}')
    return Refusal(_whole(f"{name}.code", value["code"], REFUSALS.start, REFUSALS.stop - 1), value["step"])


READERS: dict[str, Callable[[str, object], Any]] = {
    "greeting_delay_ms": _delay,
    "refuse_with": _refusal,
    "drop_after_dot": _flag,
    "rate": _rate,
    "seed": _seed,
    "for_s": _seconds,
}


@dataclass
class FaultPlan:
    monotonic: Callable[[], float] = time.monotonic
    _faults: Faults = CALM
    _dice: random.Random = field(default_factory=random.Random)
    _until: float = math.inf

    def set(self, faults: Faults) -> None:
        self._faults = faults
        self._dice = random.Random(faults.seed)  # noqa: S311 - dice for tests, not for secrets
        self._until = math.inf if faults.for_s is None else self.monotonic() + faults.for_s

    @property
    def active(self) -> Faults:
        if self._faults is not CALM and self.monotonic() >= self._until:
            self.set(CALM)
        return self._faults

    def describe(self) -> dict[str, Any]:
        faults = self.active
        left = None if math.isinf(self._until) else round(self._until - self.monotonic(), 3)
        return {**asdict(faults), "active": faults != CALM, "ends_in_s": left}

    def refusal_at(self, step: Step) -> str | None:
        """The refusing answer to this step, or None to go on."""
        refusal = self.active.refuse_with
        if refusal is None or refusal.step != step or not self._hits():
            return None
        return f"{refusal.code} {refusal.code // 100}.3.0 refused by a fault of the mail sandbox"

    def drops(self) -> bool:
        return self.active.drop_after_dot and self._hits()

    def _hits(self) -> bool:
        return self._dice.random() < self._faults.rate
