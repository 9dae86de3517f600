"""The two boards in Redis on which the relay and a service tell each other where they stand, again and again.

Whatever stands on them is repeated every second, because Redis forgets.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shared.bus.progress import Epoch

if TYPE_CHECKING:
    from collections.abc import Mapping


def settled_board(service: str) -> str:
    """Where a service reports how far its ledger goes: `<partition>` -> position, `epoch:<partition>` -> epoch."""
    return f"settled:{service}"


def relay_board(service: str) -> str:
    """Where the relay says what a service may rely on.

    `partitions`, and for each of them `head:<partition>`, `dropped:<partition>` (up to there the log holds nothing
    more) and what `announcement` makes of an epoch.
    """
    return f"relay:{service}"


def dropped_of(partition: int | str) -> str:
    """The field with the last position that the log no longer holds, on the relay's board."""
    return f"dropped:{partition}"


def epoch_of(partition: int | str) -> str:
    """The field with a partition's epoch, on both boards."""
    return f"epoch:{partition}"


def announcement(partition: int, epoch: Epoch) -> dict[str, int]:
    """An epoch as the relay says it, whole: all fields are written at once."""
    return {
        epoch_of(partition): epoch.number,
        f"origin:{partition}": epoch.origin,
        f"rewound:{partition}": epoch.rewound,
        f"replay:{partition}": int(epoch.replay),
    }


def announced(board: Mapping[str, int], partition: int) -> Epoch | None:
    """The epoch on the relay's board, or None when the service is not subscribed (or Redis has just lost it)."""
    try:
        number, origin, rewound, replay = (
            board[f"{name}:{partition}"] for name in ("epoch", "origin", "rewound", "replay")
        )
    except KeyError:
        return None
    return Epoch(number, origin, rewound, bool(replay))


def reported(board: Mapping[str, int], partition: int, epoch: int) -> int | None:
    """What the service reports as settled in this epoch; None when it has not heard of the epoch yet."""
    if board.get(epoch_of(partition), 0) != epoch:
        return None
    return board.get(str(partition))
