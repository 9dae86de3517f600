"""Cursor pages over lists that only grow at the end: newest first, after the last id that was seen."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

from deploy.local.payments.form import Form, integer, refuse_unknown, text

DEFAULT_LIMIT = 10
MAX_LIMIT = 100

Item = TypeVar("Item")


class Page(NamedTuple):
    limit: int
    starting_after: str | None


def read_limit(form: Form) -> int:
    return integer(text(form, "limit") or str(DEFAULT_LIMIT), "limit", 1, MAX_LIMIT)


def read_page(form: Form, filters: frozenset[str]) -> Page:
    refuse_unknown(form, filters | {"limit", "starting_after"})
    return Page(read_limit(form), text(form, "starting_after"))


def newest_first(
    items: Sequence[Item], page: Page, position_of: Callable[[str], int], wanted: Callable[[Item], bool]
) -> tuple[list[Item], bool]:
    """The page and whether there is more behind it."""
    start = len(items) if page.starting_after is None else position_of(page.starting_after)
    found: list[Item] = []
    for position in range(start - 1, -1, -1):
        if wanted(items[position]):
            if len(found) == page.limit:
                return found, True
            found.append(items[position])
    return found, False
