"""What goes wrong when, to whom and for how long: all of it from one number, before anything begins."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from typing_extensions import override

from deploy.local.settings import SERVICES
from tests.chaos.links import LINKS

PROCESSES = (*SERVICES, "payments", "mail", "redis", "postgres")
FIRST_S, SHORTEST_GAP_S, LONGEST_GAP_S = 1.0, 1.0, 3.0

# What each server's clients say when something matters: its answer gets lost, and then the connection.
REPLIES = {
    "postgres": ("COMMIT", "INSERT", ""),
    "redis": ("EVALSHA", "XREADGROUP", "XACK", ""),
    "payments": ("POST /v1/payment_intents", "POST /v1/refunds", ""),
    "smtp": ("\r\n.\r\n", "RCPT", ""),
}
CHARGES = ("hang", "reset", "500", "drip", "truncated", "wrong_amount", "wrong_currency", "other_order")

Details = dict[str, Any]
Draw = Callable[[random.Random], tuple[str, float, Details]]  # target, seconds that it lasts, and what else


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that goes wrong, `at_s` seconds after the load began; without `for_s` it is a moment's."""

    at_s: float
    kind: str
    target: str
    for_s: float = 0.0
    details: Mapping[str, Any] = field(default_factory=dict)

    @override
    def __str__(self) -> str:
        said = [f"{self.at_s:6.2f} s  {self.kind:<17} {self.target}"]
        said += [f"{name}={value!r}" for name, value in self.details.items()]
        return " ".join(said + ([f"for {self.for_s:.2f} s"] if self.for_s else []))

    def as_json(self) -> dict[str, Any]:
        """For the report."""
        return asdict(self)


def schedule(seed: int, seconds: float) -> list[Fault]:
    """The faults of a run: the same for the same arguments, on any machine."""
    dice = random.Random(f"faults of {seed}")  # noqa: S311 - to be repeated, not to be secret
    faults: list[Fault] = []
    at_s = FIRST_S
    while at_s < seconds:
        family = dice.choices(list(FAMILIES), [weight for weight, _ in FAMILIES.values()])[0]
        kinds = FAMILIES[family][1]
        kind = dice.choice(list(kinds))
        target, for_s, details = kinds[kind](dice)
        faults.append(Fault(round(at_s, 2), kind, target, round(for_s, 2), details))
        at_s += dice.uniform(SHORTEST_GAP_S, LONGEST_GAP_S)
    return faults


def _one_of(targets: Sequence[str], shortest_s: float = 0.0, longest_s: float = 0.0) -> Draw:
    return lambda dice: (dice.choice(targets), dice.uniform(shortest_s, longest_s), {})


def _redis(**ranges: Sequence[Any]) -> Draw:
    def draw(dice: random.Random) -> tuple[str, float, Details]:
        return dice.choice(SERVICES[1:]), 0.0, {name: dice.choice(values) for name, values in ranges.items()}

    return draw


def _link(shortest_s: float, longest_s: float, **ranges: tuple[float, float]) -> Draw:
    def draw(dice: random.Random) -> tuple[str, float, Details]:
        details = {name: round(dice.uniform(*limits), 3) for name, limits in ranges.items()}
        return dice.choice(list(LINKS)), dice.uniform(shortest_s, longest_s), details

    return draw


def _drop_reply(dice: random.Random) -> tuple[str, float, Details]:
    link = dice.choice(list(LINKS))
    return link, 0.0, {"match": dice.choice(REPLIES[LINKS[link][1]]), "nth": dice.randint(1, 5)}


def _full(dice: random.Random) -> tuple[str, float, Details]:
    return "redis", dice.uniform(1, 4), {}


def _provider(dice: random.Random) -> tuple[str, float, Details]:
    share = round(dice.uniform(0.2, 1.0), 2)
    name = dice.choice([*(f"charge_then_{loss}" for loss in CHARGES), "refuse", "too_many", "bad_gateway"])
    return "payments", dice.uniform(1, 5), {"faults": {name: share, "seed": dice.randrange(2**31)}}


def _slow_provider(dice: random.Random) -> tuple[str, float, Details]:
    return "payments", dice.uniform(1, 5), {"faults": {"latency_ms": dice.randint(200, 4000)}}


def _declines(dice: random.Random) -> tuple[str, float, Details]:
    return "payments", dice.uniform(1, 5), {"faults": {"decline_rate": round(dice.uniform(0.2, 1.0), 2)}}


def _mail(dice: random.Random) -> tuple[str, float, Details]:
    some: list[Details] = [
        {"greeting_delay_ms": dice.randint(500, 8000)},
        {"drop_after_dot": True, "rate": round(dice.uniform(0.1, 0.5), 2)},
    ]
    some += [{"refuse_with": {"code": 421, "step": step}, "rate": 0.5} for step in ("mail", "rcpt", "data")]
    fault = dice.choice(some)
    return "mail", dice.uniform(1, 5), {"faults": {**fault, "seed": dice.randrange(2**31)}}


def _swizzle(dice: random.Random) -> tuple[str, float, Details]:
    links = dice.sample(list(LINKS), dice.randint(2, 6))
    how = dice.choice(("refuse", "blackhole"))
    details = {"cut": links, "restore": dice.sample(links, len(links)), "how": how}
    return "links", dice.uniform(2, 6), details


# How often each family is chosen, and its kinds: of a family, each is as likely as the others.
FAMILIES: Mapping[str, tuple[int, Mapping[str, Draw]]] = {
    "process": (
        6,
        {
            "kill": _one_of(PROCESSES),
            "crash": _one_of(SERVICES),
            "freeze": _one_of(PROCESSES, 0.3, 9.0),
            "terminate": _one_of(SERVICES),
            "few_files": _one_of(SERVICES, 1.0, 4.0),
        },
    ),
    "redis": (
        6,
        {
            "flush": _one_of(("redis",)),
            "restart_empty": _one_of(("redis",)),
            "cut_tail": lambda dice: ("redis", 0.0, {"bytes": dice.randint(100, 50_000)}),
            "trim": _redis(),
            "delete_entries": _redis(count=(1, 5, 50)),
            "destroy_group": _redis(),
            "delete_consumer": _redis(),
            "replace_key": _redis(),
            "forget_settled": _redis(),
            "lie_settled": _redis(value=("1000000000", "-1", "rubbish")),
            "disconnect": _one_of(("redis",), 0.5, 3.0),
            "pause": _one_of(("redis",), 0.5, 6.0),
            "full": _full,
        },
    ),
    "postgres": (
        4,
        {
            "immediate_stop": _one_of(("postgres",)),
            "end_backends": lambda dice: (dice.choice(SERVICES), 0.0, {"share": round(dice.uniform(0.2, 1), 2)}),
            "freeze_backend": _one_of(SERVICES, 0.5, 8.0),
            "few_connections": lambda dice: (dice.choice(SERVICES), dice.uniform(1, 4), {"limit": dice.randint(0, 3)}),
        },
    ),
    "link": (
        7,
        {
            "refuse": _link(0.3, 5.0),
            "reset": _link(0.0, 0.0),
            "blackhole": _link(0.5, 8.0),
            "deaf": _link(0.5, 8.0),
            "latency": _link(1.0, 5.0, latency_s=(0.01, 0.3), jitter_s=(0.0, 0.2)),
            "bandwidth": _link(1.0, 4.0, bytes_per_s=(2_000, 100_000)),
            "slice": _link(0.5, 2.0),
            "limit": _link(1.0, 4.0, bytes=(100, 20_000)),
            "half_close": _link(0.0, 0.0),
            "drop_reply": _drop_reply,
        },
    ),
    "provider": (3, {"provider": _provider, "slow_provider": _slow_provider, "declines": _declines}),
    "mail": (1, {"mail": _mail}),
    "swizzle": (1, {"swizzle": _swizzle}),
}
