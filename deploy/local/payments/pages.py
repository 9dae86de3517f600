"""Cursor pages over lists that only grow at the end: newest first, after the last id that was seen."""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, TypeVar

from deploy.local.payments.form import Form, integer, mapping, refuse_unknown, text

DEFAULT_LIMIT = 10
MAX_LIMIT = 100

Item = TypeVar("Item")
BOUNDS = frozenset({"gt", "gte", "lt", "lte"})
FAR_FUTURE = 2**40


class Created(Protocol):
    """Something that was made at a time, in seconds."""

    @property
    def created(self) -> int: ...


class Page(NamedTuple):
    limit: int
    starting_after: str | None


def read_limit(form: Form) -> int:
    return integer(text(form, "limit") or str(DEFAULT_LIMIT), "limit", 1, MAX_LIMIT)


def read_page(form: Form, filters: frozenset[str]) -> Page:
    refuse_unknown(form, filters | {"limit", "starting_after"})
    return Page(read_limit(form), text(form, "starting_after"))


def newest_first(
    items: Sequence[Item],
    page: Page,
    position_of: Callable[[str], int],
    wanted: Callable[[Item], bool],
    within: range | None = None,
) -> tuple[list[Item], bool]:
    """The page and whether there is more behind it; `within` are the positions that are looked at."""
    first, end = (within.start, within.stop) if within is not None else (0, len(items))
    start = end if page.starting_after is None else min(end, position_of(page.starting_after))
    found: list[Item] = []
    for position in range(start - 1, first - 1, -1):
        if wanted(items[position]):
            if len(found) == page.limit:
                return found, True
            found.append(items[position])
    return found, False


def created_within(form: Form, items: Sequence[Created]) -> range:
    """The positions of what was made in the given seconds, `created[gte]` and the like; `items` are in that order."""
    given = mapping(form, "created")
    refuse_unknown(dict(given), BOUNDS)
    bounds = {name: integer(value, f"created[{name}]", 0, FAR_FUTURE) for name, value in given.items()}
    first = max(bounds.get("gte", 0), bounds.get("gt", -1) + 1)
    end = min(bounds.get("lt", FAR_FUTURE), bounds.get("lte", FAR_FUTURE) + 1)
    return range(_position(items, first), _position(items, end))


def _position(items: Sequence[Created], second: int) -> int:
    return bisect_left(items, second, key=lambda item: item.created)
