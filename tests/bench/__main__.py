"""Benchmarks: what this machine gets out of Orderstream, beside what its Postgres gets out of one hot row.

Load generator, Postgres, Redis, payment sandbox and all services share the machine. Quote the ratio, not the figure.
"""

import argparse
import asyncio
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import uvloop
from rich.console import Console
from rich.table import Table

from deploy.local import postgres
from tests.bench.backbone import measure_backbone
from tests.bench.overload import measure_overload
from tests.support.load import closed_loop, open_loop, order_body
from tests.support.platform import ROOT, Platform, free_base

CONNECTIONS = 64
BUCKET = re.compile(r'orderstream_commit_to_effect_seconds_bucket\{le="([^"]+)"\} ([0-9.e+]+)')
SERVICES = ("EMAIL", "ANALYTICS", "WAREHOUSE")


async def measure(platform: Platform, seconds: float, rounds: int) -> dict[str, Any]:
    """Every figure; the rounds alternate, so that the machine's moods hit both sides of a ratio.

    The flood comes last: its mails go out for minutes, beside whatever is measured after it.
    """
    p50_ms, p99_ms = await commit_to_effect(platform)
    backbone = await measure_backbone(platform)
    hot_row, hot_sku, latencies = [], [], []
    for _ in range(rounds):
        hot_row.append(pgbench(platform, seconds))
        history = await closed_loop(
            platform.env["CHECKOUT_URL"],
            platform.env["API_KEY"],
            order_body("SKU-0002"),
            connections=CONNECTIONS,
            seconds=seconds,
            warm_up_s=2,
        )
        hot_sku.append(history.statuses[201] / history.seconds)
        latencies.append(history.percentile_ms(0.99))
    backlog_s = await drained(platform)
    return {
        "orders/s on one hot SKU, 64 connections": round(statistics.median(hot_sku)),
        "  its p99, ms": round(statistics.median(latencies)),
        "pgbench: updates/s of one hot row, 64 connections": round(statistics.median(hot_row)),
        "  orders per update": round(statistics.median(a / b for a, b in zip(hot_sku, hot_row, strict=True)), 2),
        "seconds until every service had settled every event": round(backlog_s, 1),
        "commit to effect at 100 orders/s, p50 ms": p50_ms,
        "commit to effect at 100 orders/s, p99 ms": p99_ms,
        **backbone,
    }


def pgbench(platform: Platform, seconds: float) -> float:
    """How often a second this Postgres can commit an update of one row, with nothing else running."""
    with tempfile.NamedTemporaryFile("w", suffix=".sql") as script:
        script.write("UPDATE products SET name = name WHERE sku = 'SKU-0003';\n")
        script.flush()
        url = urlsplit(platform.env["POSTGRES_URL"])._replace(path="/checkout").geturl()
        clients = ["-c", str(CONNECTIONS), "-j", "2", "-T", str(int(seconds)), "-M", "prepared"]
        command = [str(postgres.binaries() / "pgbench"), "-n", *clients, "-f", script.name, url]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return float(re.findall(r"tps = ([0-9.]+)", said)[0])


async def drained(platform: Platform) -> float:
    """Wait until every service has settled every event (mails go on at their own rate)."""
    began = time.monotonic()
    async with httpx.AsyncClient(headers={"Authorization": f"Bearer {platform.env['OPS_KEY']}"}) as client:
        while any(one["backlog"] for one in await _subscriptions(client, platform)):
            await asyncio.sleep(0.2)
    return time.monotonic() - began


async def _subscriptions(client: httpx.AsyncClient, platform: Platform) -> list[dict[str, int]]:
    answer = await client.get(f"{platform.env['CHECKOUT_URL']}/ops/subscriptions")
    items: list[dict[str, int]] = answer.json()["items"]
    return items


async def commit_to_effect(platform: Platform) -> tuple[float, float]:
    """p50 and p99 over the three services, from their own histograms."""
    checkout, key = platform.env["CHECKOUT_URL"], platform.env["API_KEY"]
    await open_loop(checkout, key, order_body(), rate=100, count=300)  # everything has been used once
    before = await buckets(platform)
    await open_loop(checkout, key, order_body(), rate=100, count=1500)
    await drained(platform)
    after = await buckets(platform)
    counted = {edge: after[edge] - before.get(edge, 0.0) for edge in after}
    return quantile_ms(counted, 0.5), quantile_ms(counted, 0.99)


async def buckets(platform: Platform) -> dict[float, float]:
    """The cumulative histogram, added up over the services."""
    found: dict[float, float] = {}
    async with httpx.AsyncClient() as client:
        for name in SERVICES:
            text = (await client.get(f"{platform.env[f'{name}_URL']}/metrics")).text
            for edge, count in BUCKET.findall(text):
                found[float(edge)] = found.get(float(edge), 0.0) + float(count)
    return found


def quantile_ms(cumulative: dict[float, float], share: float) -> float:
    """The quantile by linear interpolation inside its bucket, as Prometheus' histogram_quantile does it."""
    wanted = max(cumulative.values()) * share
    edge_before, count_before = 0.0, 0.0
    for edge, count in sorted(cumulative.items()):
        if count >= wanted:
            inside = (wanted - count_before) / max(count - count_before, 1.0)
            return round((edge_before + (edge - edge_before) * inside) * 1000, 1)
        edge_before, count_before = edge, count
    return float("inf")


def main() -> int:
    """Start a platform of its own, measure, show, stop it."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--seconds", type=float, default=8, help="length of each measurement")
    parser.add_argument("--rounds", type=int, default=5, help="measurements, of which the median counts")
    parser.add_argument(
        "--overload",
        type=float,
        nargs="?",
        const=60,
        metavar="SECONDS",
        help="too many orders and frozen processes instead, so long for each (60: eight minutes)",
    )
    chosen = parser.parse_args()
    folder = ROOT / ".run" / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    platform = Platform(folder / "platform", free_base())
    started = platform.do("up")
    if started.returncode:
        sys.stderr.write(started.stderr)
        return 1
    try:
        figures = uvloop.run(
            measure_overload(platform, chosen.overload)
            if chosen.overload
            else measure(platform, chosen.seconds, chosen.rounds)
        )
    finally:
        platform.do("reset")
    show(figures, folder / ("overload.json" if chosen.overload else "result.json"))
    return 0


def show(figures: dict[str, Any], path: Path) -> None:
    """A table for people, JSON for the rest."""
    table = Table("what", "result")
    for name, value in figures.items():
        table.add_row(name, str(value))
    Console().print(table)
    path.write_text(json.dumps(figures, indent=2) + "\n")
    sys.stdout.write(f"written to {path.relative_to(ROOT)}\n")


if __name__ == "__main__":
    sys.exit(main())
