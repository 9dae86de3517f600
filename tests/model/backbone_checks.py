"""What must hold of log, streams and ledgers after every step, and what at rest."""

from collections import Counter
from collections.abc import Container
from typing import Any
from uuid import UUID

from tests.model.backbone import HANDLED, RETRIES, Backbone, Fate, Snapshot, Written
from tests.support.memory_streams import Stream

OPEN = {"retrying", "waiting"}
Subscriptions = dict[tuple[str, int], dict[str, Any]]


def always(world: Backbone, service: str, before: Snapshot, now: Snapshot, subscriptions: Subscriptions) -> list[str]:
    """Everything that does not hold of one service."""
    return [
        *_once(world, service, now),
        *_known(world, now),
        *_settled(world, service, now, subscriptions),
        *_in_order(before, now, world.promises[service].again),
    ]


def believed(before: Subscriptions, now: Subscriptions, heads: list[int]) -> list[str]:
    """Settled only moves forward in an epoch, and never beyond what was published."""
    found = []
    for key, one in now.items():
        if not one["settled"] <= one["cursor"] <= heads[key[1]]:
            found.append(f"I7 {key} {one} beyond {heads}")
        old = before.get(key)
        if old and old["epoch"] == one["epoch"] and one["settled"] < old["settled"]:
            found.append(f"settled went back: {key} {old} {one}")
    return found


def _once(world: Backbone, service: str, now: Snapshot) -> list[str]:
    """I8: an effect and its ledger row are there together, once."""
    again = world.promises[service].again
    effects = Counter(UUID(one["event_id"]) for one in now.effects)
    found = [f"I8 {n} effects of {_short(world, one)}" for one, n in effects.items() if n > 1 + again.get(one, 0)]
    done = {one for one, row in now.ledger.items() if row["state"] == "done"}
    found += [f"I8 done without an effect: {_short(world, one)}" for one in done - effects.keys()]
    without = [one for one in effects.keys() - done if one not in again]
    return found + [f"I8 an effect, and nothing says so: {_short(world, one)}" for one in without]


def _known(world: Backbone, now: Snapshot) -> list[str]:
    """I9, I14: the ledger has what the log has, where the log has it."""
    found = []
    for event_id, row in now.ledger.items():
        written = world.written.get(event_id)
        if row["type"] == "unreadable":
            continue
        if written is None or (written.partition, written.position) != (row["partition"], row["position"]):
            found.append(f"I9 nobody wrote {row}")
        if row["attempts"] > RETRIES + 2:  # the first, the retries, and the one that finds it exhausted
            found.append(f"I14 too many attempts: {row}")
    return found


def _settled(world: Backbone, service: str, now: Snapshot, subscriptions: Subscriptions) -> list[str]:
    """I8, I14: what counts as settled, here or there, is in the ledger, whatever its state."""
    found = []
    for partition, owed_from in world.promises[service].owed_from.items():
        one = subscriptions[service, partition]
        own = now.progress.get(partition, {"settled": 0, "epoch": 0})
        settled = max(one["settled"], own["settled"] if own["epoch"] == one["epoch"] else 0)
        found += [
            f"I8 {service} is believed to have {_short(world, written.event.id)}: settled {settled}"
            for written in world.written.values()
            if written.partition == partition and owed_from < written.position <= settled
            if written.event.id not in now.ledger
        ]
    return found


def _in_order(before: Snapshot, now: Snapshot, again: Container[UUID]) -> list[str]:
    """I10: nothing overtakes an event of the same order that waits for its next attempt."""
    found = []
    waiting = {
        row["subject"] for one, row in now.ledger.items()
        if row["state"] in OPEN and before.ledger.get(one, {}).get("state") in OPEN and one not in again
    }  # fmt: skip
    for one, row in now.ledger.items():
        new = row["state"] == "done" and one not in before.ledger and one not in again
        if new and row["subject"] in waiting:
            found.append(f"I10 overtaken: {row}")
    return found + _by_version(now)


def _by_version(now: Snapshot) -> list[str]:
    """I10: in one transaction, the events of an order come by version."""
    found = []
    latest: dict[tuple[int, str], int] = {}
    for effect in now.effects:
        its = (effect["transaction"], effect["subject"])
        if effect["version"] < latest.get(its, 0):
            found.append(f"I10 out of order: {effect}")
        latest[its] = effect["version"]
    return found


async def dense(world: Backbone) -> list[str]:
    """I7: the log holds what was committed, in that order, without gaps."""
    expected = sorted((one.partition, one.position, one.event.id) for one in world.written.values())
    found = await world.logged()
    return [] if found == expected else [f"I7 the log is {found}, not {expected}"]


async def at_rest(world: Backbone) -> list[str]:
    """I8, I22: everything that is not as it has to be when faults are over and queues are empty."""
    found = []
    for (_, partition), one in (await world.subscriptions()).items():
        head = world.heads[partition]
        if (one["cursor"], one["settled"]) != (head, head):
            found.append(f"I22 {one}, and the head is {head}")
    for name, held in world.server.keys.items():
        if isinstance(held, Stream) and any(group.open for group in held.groups.values()):
            found.append(f"I22 entries of {name} are open: {held.groups}")
    for service in world.services:
        now = await world.snapshot(service)
        found += [f"I22 still open: {row}" for row in now.ledger.values() if row["state"] in OPEN]
        found += _all_there(world, service, now)
    return found


def _all_there(world: Backbone, service: str, now: Snapshot) -> list[str]:
    found = []
    for written in world.written.values():
        owed_from = world.promises[service].owed_from.get(written.partition)
        if owed_from is None or written.position <= owed_from:
            continue
        row = now.ledger.get(written.event.id)
        if row is None:
            found.append(f"I8 {service} lost {_short(world, written.event.id)}")
        elif row["state"] != (expected := _end_of(written)):
            found.append(f"I14 {service}: {row} is not {expected}")
    return found


def _end_of(written: Written) -> str:
    if written.event.type not in HANDLED:
        return "parked" if written.event.type == "order.gifted" else "ignored"
    return "dead" if written.fate in {Fate.POISON, Fate.HOPELESS, Fate.KILLER} else "done"


def _short(world: Backbone, event_id: UUID) -> str:
    one = world.written.get(event_id)
    return f"{one.partition}/{one.position} {one.event.subject} {one.fate}" if one else f"{event_id}, of nobody"
