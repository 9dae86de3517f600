from __future__ import annotations

import csv
import io
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

from fastapi import APIRouter, Depends, Query
from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict
from pydantic_core import PydanticCustomError
from sqlalchemy import Row
from starlette.responses import FileResponse, HTMLResponse, StreamingResponse

from services.analytics import store
from services.analytics.domain import EARLIEST, LATEST, MAX_BUCKETS, Bucket, Period
from shared.contracts.envelope import Instant, rfc3339
from shared.runtime.clock import Clock
from shared.runtime.db import Database
from shared.web.auth import Principal, require
from shared.web.problems import not_found, validation_failed
from shared.web.templating import environment

FOLDER = Path(__file__).parent
ASSETS = {"dashboard.js": "text/javascript", "dashboard.css": "text/css"}
EXPORT_PAGE = 2_000  # rows read at a time: no transaction is held while a slow client downloads
EXPORT_TEXTS = ("order_id", "tenant", "status", "currency")
EXPORT_COLUMNS = (*EXPORT_TEXTS, "total", "refunded_total", "units", "created_at", "completed_at")
SALES_BY_DEFAULT = timedelta(hours=24)

_RFC3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)")
# Spreadsheets take a cell that begins with one of these for a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")

Item = TypeVar("Item")


def _only_rfc3339(value: object) -> object:
    # pydantic would take 1700000000 and 2026-01-31 as well.
    if isinstance(value, str) and not _RFC3339.fullmatch(value):
        raise PydanticCustomError("rfc3339", "Send an RFC 3339 time such as 2026-01-31T09:15:00Z (a + as %2B)")
    return value


Moment = Annotated[AwareDatetime, BeforeValidator(_only_rfc3339)]
From = Annotated[Moment | None, Query(alias="from", description="first instant that counts")]
To = Annotated[Moment | None, Query(description="first instant that does not count any more")]
Reader = Annotated[Principal, Depends(require("analytics:read"))]


class Answer(BaseModel, Generic[Item]):
    """A list that is always complete."""

    items: list[Item]


class CurrencySummary(BaseModel):
    """What the orders of one currency add up to, in minor units."""

    model_config = ConfigDict(from_attributes=True)

    currency: str
    orders: int
    gross: int
    refunded: int
    net: int
    cancelled: int
    payment_failed: int
    average_order: int


class Sales(BaseModel):
    """What one bucket adds up to, in minor units. Buckets without orders are left out."""

    start: Instant
    currency: str
    orders: int
    gross: int
    refunded: int
    net: int


class ProductSales(BaseModel):
    """What one product brought in, before refunds."""

    model_config = ConfigDict(from_attributes=True)

    sku: str
    currency: str
    orders: int
    quantity: int
    gross: int


class Reports:
    """What the routes do."""

    def __init__(self, db: Database, clock: Clock) -> None:
        self._db = db
        self._clock = clock
        self._templates = environment(FOLDER / "templates")

    async def summary(self, _: Reader, from_: From = None, to: To = None) -> Answer[CurrencySummary]:
        """Everything, unless `from` or `to` narrow it."""
        async with self._db.reading() as connection:
            rows = await store.summary(connection, _period(from_, to))
        return Answer(items=[_summary(row) for row in rows])

    async def sales(self, _: Reader, from_: From = None, to: To = None, bucket: Bucket = Bucket.HOUR) -> Answer[Sales]:
        """The last 24 hours, unless `from` or `to` say otherwise; buckets are UTC."""
        end = to or self._clock.now()
        period = _period(from_ or max(_in_range(end, "to") - SALES_BY_DEFAULT, EARLIEST), end)
        if period.buckets(bucket) > MAX_BUCKETS:
            raise _invalid("bucket", f"More than {MAX_BUCKETS} buckets: take a longer bucket or a shorter time")
        async with self._db.reading() as connection:
            rows = await store.sales(connection, period, bucket)
        return Answer(items=[_sales(row) for row in rows])

    async def top_products(
        self,
        _: Reader,
        from_: From = None,
        to: To = None,
        currency: Annotated[str | None, Query(pattern="^[A-Z]{3}$")] = None,
        limit: Annotated[int, Query(ge=1, le=100)] = 10,
    ) -> Answer[ProductSales]:
        """By what they brought in; of all time, unless `from` or `to` narrow it."""
        async with self._db.reading() as connection:
            rows = await store.top_products(connection, _period(from_, to), currency, limit)
        return Answer(items=[ProductSales.model_validate(row) for row in rows])

    async def export(self, _: Reader, from_: From = None, to: To = None) -> StreamingResponse:
        """One row per order, oldest first."""
        name = {"Content-Disposition": 'attachment; filename="orders.csv"'}
        lines = self._export(_period(from_, to))
        return StreamingResponse(lines, media_type="text/csv; charset=utf-8", headers=name)

    async def _export(self, period: Period) -> AsyncIterator[str]:
        yield _csv([EXPORT_COLUMNS])
        after: tuple[datetime, str] | None = None
        while True:
            async with self._db.reading() as connection:
                rows = await store.facts_after(connection, period, after, EXPORT_PAGE)
            if not rows:
                return
            yield _csv([_export_row(row) for row in rows])
            after = (rows[-1].happened_at, rows[-1].order_id)

    async def dashboard(self, _: Reader) -> HTMLResponse:
        """The shell of the page; its script fetches the numbers."""
        return HTMLResponse(self._templates.get_template("dashboard.html").render())

    async def asset(self, name: str) -> FileResponse:
        """The page's script and style."""
        if name not in ASSETS:
            raise not_found("file")
        return FileResponse(FOLDER / "static" / name, media_type=ASSETS[name], headers={"Cache-Control": "no-cache"})


def router(db: Database, clock: Clock) -> APIRouter:
    """The service's own routes."""
    reports = Reports(db, clock)
    routes = APIRouter()
    numbers: dict[str, Any] = {"methods": ["GET"], "tags": ["reports"]}
    page: dict[str, Any] = {"methods": ["GET"], "include_in_schema": False}
    routes.add_api_route("/v1/summary", reports.summary, summary="Totals per currency", **numbers)
    routes.add_api_route("/v1/sales", reports.sales, summary="Totals over time", **numbers)
    routes.add_api_route("/v1/top-products", reports.top_products, summary="What sold best", **numbers)
    routes.add_api_route("/v1/export.csv", reports.export, summary="Every order as CSV", **numbers)
    routes.add_api_route("/", reports.dashboard, **page)
    routes.add_api_route("/assets/{name}", reports.asset, **page)
    return routes


def _period(start: datetime | None, end: datetime | None) -> Period:
    period = Period(_in_range(start or EARLIEST, "from"), _in_range(end or LATEST, "to"))
    if period.start > period.end:
        raise _invalid("from", "from should not be later than to")
    return period


def _in_range(instant: datetime, name: str) -> datetime:
    if not EARLIEST <= instant <= LATEST:
        raise _invalid(name, f"{name} should be between {EARLIEST.year} and {LATEST.year}")
    return instant.astimezone(UTC)


def _invalid(name: str, detail: str) -> Exception:
    return validation_failed([{"in": "query", "pointer": f"/{name}", "detail": detail}])


def _summary(row: Row[Any]) -> CurrencySummary:
    return CurrencySummary(
        currency=row.currency,
        orders=row.orders,
        gross=row.gross,
        refunded=row.refunded,
        net=row.gross - row.refunded,
        cancelled=row.cancelled,
        payment_failed=row.payment_failed,
        average_order=round(row.gross / row.orders) if row.orders else 0,
    )


def _sales(row: Row[Any]) -> Sales:
    return Sales(
        start=row.start,
        currency=row.currency,
        orders=row.orders,
        gross=row.gross,
        refunded=row.refunded,
        net=row.gross - row.refunded,
    )


def _export_row(row: Row[Any]) -> tuple[object, ...]:
    units = sum(quantity for _, quantity, _ in row.lines)
    completed = rfc3339(row.completed_at.astimezone(UTC)) if row.completed_at else ""
    texts = (_harmless(getattr(row, name)) for name in EXPORT_TEXTS)
    return (*texts, row.total, row.refunded_total, units, rfc3339(row.created_at.astimezone(UTC)), completed)


def _harmless(text: str) -> str:
    return f"'{text}" if text.startswith(_FORMULA) else text


def _csv(rows: list[tuple[object, ...]]) -> str:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue()
