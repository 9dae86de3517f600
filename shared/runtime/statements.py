"""Statements over many rows at once: every parameter is an array, one element per row."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import TextClause, bindparam, text
from sqlalchemy.dialects.postgresql import ARRAY

if TYPE_CHECKING:
    from sqlalchemy.types import TypeEngine


def over_arrays(sql: str, **columns: type[TypeEngine[Any]] | TypeEngine[Any]) -> TextClause:
    """`sql` with each named parameter bound as an array of the given type, for `unnest`."""
    return text(sql).bindparams(*(bindparam(name, type_=ARRAY(kind)) for name, kind in columns.items()))
