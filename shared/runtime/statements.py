"""Statements over many rows at once, and many such statements in one round trip.

On a busy machine a round trip to the database costs two changes of process, which is more than most statements do.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter
from sqlalchemy import Text, TextClause, bindparam, cast, text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.types import TypeDecorator
from typing_extensions import override

if TYPE_CHECKING:
    from sqlalchemy import BindParameter, ColumnElement, Dialect
    from sqlalchemy.types import TypeEngine

# In a table's `info`: statements that make it whole, and change nothing where it is. What they make (functions, say) is
# the code's, not the history's: every upgrade of a database brings it up to date.
COMPLETED_BY = "completed_by"

_ANYTHING: TypeAdapter[Any] = TypeAdapter(Any)
_PARAMETER = re.compile(r"(?<!:):([a-z_]+)")


class Many(TypeDecorator[Sequence[Any]]):
    """An array that travels as one text, `{1,2,null}`: asyncpg takes ten times as long to encode each of its elements.

    For every type of which Postgres reads what JSON writes: numbers, texts, truth values, UUIDs, times with a zone.
    """

    impl = Text
    cache_ok = True

    def __init__(self, kind: type[TypeEngine[Any]] | TypeEngine[Any]) -> None:
        """`kind` is the type of the elements."""
        super().__init__()
        self.kind = kind

    @override
    def bind_expression(self, bindparam: BindParameter[Any]) -> ColumnElement[Any]:
        return cast(bindparam, ARRAY(self.kind))

    @override
    def process_bind_param(self, value: Sequence[Any] | None, dialect: Dialect) -> str | None:
        return None if value is None else array_literal(value)


def array_literal(values: Sequence[Any]) -> str:
    """The values as Postgres reads an array. None is NULL."""
    content = _ANYTHING.dump_json(values).decode()
    if "\\" in content:
        # In the two languages a backslash means different things; only texts have any.
        content = f"[{','.join(map(_quoted, values))}]"
    return f"{{{content[1:-1]}}}"


def _quoted(value: str | None) -> str:
    if value is None:
        return "null"
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def over_arrays(sql: str, **columns: type[TypeEngine[Any]] | TypeEngine[Any]) -> TextClause:
    """`sql` with each named parameter bound as an array of the given type, for `unnest`."""
    return text(sql).bindparams(*(bindparam(name, type_=Many(kind)) for name, kind in columns.items()))


class Part:
    """A statement over arrays that can share a round trip with others. It must not return rows.

    Parts of one round trip all see the database as it was before: none may touch a row that another one writes.
    """

    def __init__(self, name: str, sql: str, **columns: type[TypeEngine[Any]] | TypeEngine[Any]) -> None:
        """`name` must be unique among the parts that are run together."""
        self.name = name
        self.sql = _PARAMETER.sub(rf":{name}_\1", sql)
        self.parameters = [bindparam(f"{name}_{column}", type_=Many(kind)) for column, kind in columns.items()]

    def write(self, **values: object) -> Write:
        """The part with its arrays (a parameter that is no array must be a number)."""
        return Write(self, {f"{self.name}_{column}": value for column, value in values.items()})


@dataclass(frozen=True, slots=True)
class Write:
    """A part and what it writes."""

    part: Part
    values: Mapping[str, object]


@lru_cache(maxsize=256)
def together(parts: tuple[Part, ...], then: str = "SELECT 1") -> TextClause:
    """One statement out of parts, each a common table expression of its name, followed by `then`."""
    expressions = ", ".join(f"{part.name} AS ({part.sql})" for part in parts)
    parameters = [parameter for part in parts for parameter in part.parameters]
    return text(f"WITH {expressions} {then}").bindparams(*parameters)
