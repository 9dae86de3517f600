"""Overload in full: twice and five times the capacity for a minute each, and a freeze of each thing it stands on."""

from typing import Any

from tests.support.overload import Crowd, Freeze, Overload
from tests.support.platform import Platform

FACTORS = (2, 5)
FROZEN = ("postgres", "redis", "payments")
GOODPUT = {2: 0.9, 5: 0.8}
ACCEPTED_P99 = 2.0
REFUSED_P99_MS = 20.0
AFTERWARDS = 0.95


async def measure_overload(platform: Platform, seconds: float) -> dict[str, Any]:
    """Every figure beside what it should be; `seconds` of each overload."""
    crowd = Crowd(platform)
    await crowd.measure(max(8.0, seconds / 4))
    figures: dict[str, Any] = {
        "orders/s, 64 connections (the capacity)": round(crowd.capacity),
        "p99 at 70 % of it, ms": crowd.calm_p99_ms,
    }
    for factor in FACTORS:
        figures |= _told(await crowd.overload(factor, seconds, afterwards_s=seconds / 2))
    for name in FROZEN:
        figures |= _frozen(await crowd.freeze(name, before_s=seconds / 6, frozen_s=seconds / 6, after_s=seconds / 2))
    return figures


def _told(seen: Overload) -> dict[str, float]:
    at = f"{seen.factor:g} times the capacity"
    return {
        f"{at}: goodput / capacity (aim: at least {GOODPUT[int(seen.factor)]})": round(seen.goodput, 2),
        f"  p99 of the accepted / p99 at 70 % (at most {ACCEPTED_P99:g}), {at}": round(seen.accepted_p99, 2),
        f"  p99 of the refused, ms (at most {REFUSED_P99_MS:g}), {at}": seen.refused_p99_ms,
        f"  completed / offered at 70 % afterwards (at least {AFTERWARDS}), {at}": round(seen.afterwards, 3),
    }


def _frozen(seen: Freeze) -> dict[str, float]:
    return {f"{seen.name} frozen: goodput after / before (aim: at least {AFTERWARDS})": round(seen.recovered, 2)}
