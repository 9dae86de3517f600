"""What is counted after a run, and over all of them."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import asyncpg

from tests.chaos.schedule import Fault
from tests.support.invariants import database

MESSAGE_ID = re.compile(rb"^Message-ID:\s*(<[^>]+>)", re.MULTILINE | re.IGNORECASE)
SUMMED = ("orders", "completed", "deliveries", "lost", "duplicates", "mails", "mails sent twice", "mails given up")


async def orders_by_id(env: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Every order that checkout has."""
    connection = await asyncpg.connect(database(env, "checkout"))
    try:
        return {row["id"]: dict(row) for row in await connection.fetch("SELECT id, status FROM orders")}
    finally:
        await connection.close()


async def mails(env: Mapping[str, str], folder: Path) -> dict[str, Any]:
    """I13: how many copies of each mail the mail server took, against the attempts whose end nobody knows."""
    connection = await asyncpg.connect(database(env, "email"))
    query = "SELECT message_id, status, attempts, unknowns, interruptions, last_error FROM messages"
    try:
        rows = await connection.fetch(query)
    finally:
        await connection.close()
    copies = _copies(folder)
    found = [f"I13 a mail that nobody ordered: {name}" for name in copies.keys() - {row["message_id"] for row in rows}]
    for row in rows:
        count = copies[row["message_id"]]
        if row["status"] == "sent" and not count:
            found.append(f"I13 sent, and the mail server has none: {dict(row)}")
        # Each attempt that ended without a word may have been taken; a death in between shows as one more attempt.
        if count > row["attempts"] + row["unknowns"] + row["interruptions"]:
            found.append(f"I13 {count} copies: {dict(row)}")
        if row["status"] == "failed" and "unknown twice" not in (row["last_error"] or ""):
            found.append(f"I13 given up: {dict(row)}")
    return {
        "mails": len(rows),
        "mails sent twice": sum(1 for count in copies.values() if count > 1),
        "mails given up": sum(1 for row in rows if row["status"] == "failed"),
        "violations": found,
    }


def _copies(folder: Path) -> Counter[str]:
    found = (MESSAGE_ID.search(path.read_bytes()) for path in folder.rglob("*.eml"))
    return Counter(match[1].decode() for match in found if match)


def not_played(seed: int, faults: Sequence[Fault], error: Exception) -> dict[str, Any]:
    """A run that did not get to its end: nothing was counted."""
    names = (*SUMMED, "extra %", "seconds to drain", "faults that could not be done")
    kinds = dict(Counter(fault.kind for fault in faults))
    violations = [f"the run could not be played: {error or type(error).__name__}"]
    return {**dict.fromkeys(names, 0), "seed": seed, "faults": kinds, "violations": violations}


def summary(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Everything added up; of times the longest."""
    total: dict[str, Any] = {name: sum(one[name] for one in results) for name in SUMMED}
    faults: Counter[str] = Counter()
    for one in results:
        faults.update(one["faults"])
    deliveries = max(1, total["deliveries"])
    extra = sum(one["extra %"] * one["deliveries"] for one in results)
    return {
        "runs": len(results),
        "runs that broke a rule": sum(1 for one in results if one["violations"]),
        **total,
        "extra deliveries %": round(extra / deliveries, 2),
        "longest seconds to drain": max(one["seconds to drain"] for one in results),
        "faults": dict(faults.most_common()),
        "faults that could not be done": sum(one["faults that could not be done"] for one in results),
    }
