"""Lists, page by page: every list answers `{"items": [...], "has_more": bool}`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Generic, TypeVar

from fastapi import Query
from pydantic import BaseModel

Item = TypeVar("Item")

DEFAULT_LIMIT = 20
MOST = 100

Limit = Annotated[int, Query(ge=1, le=MOST, description="how many at the most")]
StartingAfter = Annotated[str | None, Query(max_length=100, description="the last id of the page before")]


class Page(BaseModel, Generic[Item]):
    """One page of a list."""

    items: list[Item]
    has_more: bool


def page_of(found: Sequence[Item], limit: int) -> Page[Item]:
    """The page, when the query asked for one more than `limit`."""
    return Page(items=list(found[:limit]), has_more=len(found) > limit)
