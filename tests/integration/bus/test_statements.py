"""Arrays that travel as one text arrive as they were, whatever is in them."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import UUID

import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import BigInteger, Boolean, DateTime, Double, Text, Uuid
from sqlalchemy.types import TypeEngine

from shared.runtime.db import Database
from shared.runtime.statements import over_arrays

# What a text of Postgres can hold: all but NUL and halves of surrogate pairs.
TEXTS = st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]))
AWKWARD = ['"', "\\", "{}", ",", "null", "NULL", "", " ", "\n\t\r\b\f\x1f", "\\x00", '\\"', "Grüße 🛍", "'; --"]


@pytest_asyncio.fixture(scope="module")
async def db(database_url: str) -> AsyncIterator[Database]:
    made = Database(database_url, "test", 2)
    yield made
    await made.close()


async def returned(db: Database, kind: type[TypeEngine[Any]], values: list[Any]) -> list[Any]:
    """What Postgres takes the values for."""
    asked = over_arrays(
        "SELECT value FROM unnest(:values) WITH ORDINALITY AS e (value, number) ORDER BY number", values=kind
    )
    async with db.reading() as connection:
        return list((await connection.execute(asked, {"values": values})).scalars())


@given(values=st.lists(st.none() | TEXTS | st.sampled_from(AWKWARD)))
async def test_texts_arrive_as_they_were(db: Database, values: list[str | None]) -> None:
    assert await returned(db, Text, values) == values


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (BigInteger, [0, -1, 2**63 - 1, -(2**63), None]),
        (Double, [0.0, -1.5, 1e300, 0.1, None]),
        (Boolean, [True, None, False]),
        (Uuid, [UUID(int=0), None, UUID(int=2**128 - 1)]),
        (
            DateTime(timezone=True),
            [
                datetime(2026, 1, 31, 23, 59, 59, 999_999, UTC),
                datetime(1999, 12, 31, 12, tzinfo=timezone(timedelta(hours=-5, minutes=-30))),
                None,
            ],
        ),
        (Text, []),
    ],
)
async def test_the_other_types_too(db: Database, kind: type[TypeEngine[Any]], values: list[Any]) -> None:
    assert await returned(db, kind, values) == values
