"""Overload in full: twice and five times the capacity for a minute each, and a freeze of each thing it stands on."""

from typing import Any

from tests.support.overload import NOTHING, Crowd, Freeze, Overload
from tests.support.platform import Platform

FACTORS = (2, 5)
FROZEN = (NOTHING, "postgres", "redis", "payments")
GOODPUT = {2: 0.9, 5: 0.8}
ACCEPTED_P99 = 2.0
REFUSED_P99_MS = 20.0
AFTERWARDS = 0.95


async def measure_overload(platform: Platform, seconds: float) -> dict[str, Any]:
    """Every figure beside what it should be; `seconds` of each overload.

    The capacity is measured anew before each: a shared machine is another one some minutes later.
    """
    crowd = Crowd(platform)
    figures: dict[str, Any] = {}
    for factor in FACTORS:
        await crowd.measure(max(8.0, seconds / 4))
        figures |= {
            f"before {factor} x: capacity, orders/s, 128 connections": round(crowd.capacity),
            f"before {factor} x: p99 at 70 % of it, ms": crowd.calm_p99_ms,
        }
        figures |= _told(await crowd.overload(factor, seconds, afterwards_s=seconds / 2))
    for name in FROZEN:
        figures |= _frozen(await crowd.freeze(name, before_s=seconds / 6, frozen_s=seconds / 6, after_s=seconds / 2))
    return figures


def _told(seen: Overload) -> dict[str, float]:
    load = f"{seen.factor:g} x capacity"
    return {
        f"{load}: goodput / capacity, at least {GOODPUT[int(seen.factor)]}": round(seen.goodput, 2),
        f"{load}: p99 accepted / p99 at 70 %, at most {ACCEPTED_P99:g}": round(seen.accepted_p99, 2),
        f"{load}: p99 refused, ms, at most {REFUSED_P99_MS:g}": seen.refused_p99_ms,
        f"{load}: completed / offered afterwards, at least {AFTERWARDS}": round(seen.afterwards, 3),
    }


def _frozen(seen: Freeze) -> dict[str, float]:
    return {f"{seen.name} frozen: goodput after / before, at least {AFTERWARDS}": round(seen.recovered, 2)}
