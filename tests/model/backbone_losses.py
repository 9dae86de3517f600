"""All that a server can lose, and all that somebody can do to it, at any moment of any step."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from shared.bus.boards import settled_board
from shared.bus.streams import stream_name
from tests.model.backbone import Backbone
from tests.support.memory_streams import MemoryHand


@dataclass(frozen=True)
class Victim:
    """What is hit: one of the streams; `which` decides about the rest."""

    world: Backbone
    hand: MemoryHand
    service: str
    stream: str
    which: int


async def _fall_back(victim: Victim) -> None:
    victim.world.server.fall_back(1 + victim.which % 8)


async def _delete_some(victim: Victim) -> None:
    await victim.hand.delete(victim.stream, *range(1 + victim.which % 3, 20, 2))


async def _delete_consumer(victim: Victim) -> None:
    await victim.hand.delete_consumer(victim.stream, victim.service, ("one", "two")[victim.which % 2])


async def _rubbish(victim: Victim) -> None:
    last = max((held.last for held in victim.world.streams(victim.stream)), default=(0, 0))
    above = (10**12, 1) if victim.which % 2 else (last[0], last[1] + 1)
    await victim.hand.write(victim.stream, f"{max(above[0], last[0])}-{max(above[1], last[1] + 1)}", None)


async def _nonsense(victim: Victim) -> None:
    nonsense = ("999", "999", "-1", "abc", "")[victim.which % 5]
    await victim.hand.scribble(settled_board(victim.service), "0", nonsense)


LOSSES: dict[str, Callable[[Victim], Awaitable[None]]] = {
    "flush": lambda victim: victim.hand.flush(),
    "fall back": _fall_back,
    "drop": lambda victim: victim.hand.drop(victim.stream),
    "trim": lambda victim: victim.hand.trim(victim.stream),
    "delete some": _delete_some,
    "destroy group": lambda victim: victim.hand.destroy_group(victim.stream, victim.service),
    "delete consumer": _delete_consumer,
    "replace": lambda victim: victim.hand.replace(victim.stream),
    "rubbish": _rubbish,
    "nonsense": _nonsense,
    "full": lambda victim: victim.hand.fill(full=True),
    "room": lambda victim: victim.hand.fill(full=False),
    "split": lambda victim: victim.world.split(1 + victim.which % 8),
    "heal": lambda victim: victim.world.heal(),
}


async def lose(world: Backbone, loss: str, which: int) -> None:
    """Something is lost."""
    names = list(world.services)
    service = names[which % len(names)]
    stream = stream_name(service, which % world.partitions)
    await LOSSES[loss](Victim(world, world.hand, service, stream, which))
