"""What the services behind checkout made of an order's events: they are asked, and only people wait for the answer."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from uuid import UUID

import structlog
from aiohttp import ClientError, ClientSession, ClientTimeout, DummyCookieJar, TCPConnector
from pydantic import BaseModel, ConfigDict, ValidationError
from yarl import URL

from shared.runtime.supervision import brief

log = structlog.get_logger()

ANSWER_WITHIN_S = 2.0
CONNECTIONS = 20
MAX_ANSWER_BYTES = 1_048_576  # a page of a hundred deliveries with long errors


class Seen(BaseModel):
    """One row of a service's ledger."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    id: UUID
    type: str
    state: str
    attempts: int
    next_attempt_at: datetime | None
    last_error: str | None
    received_at: datetime
    settled_at: datetime | None


class _Answer(BaseModel):
    items: list[Seen]


class Downstream:
    """The services whose addresses checkout knows. It takes orders without any of them."""

    def __init__(self, addresses: Mapping[str, str], key: str) -> None:
        """`key` opens each of them; their own API is enough, it need not open /ops."""
        self.addresses = addresses
        self._session = ClientSession(
            connector=TCPConnector(limit=CONNECTIONS, keepalive_timeout=15),
            timeout=ClientTimeout(total=ANSWER_WITHIN_S),
            cookie_jar=DummyCookieJar(),
            headers={"Authorization": f"Bearer {key}"},
        )

    async def close(self) -> None:
        """Close every connection."""
        await self._session.close()

    async def seen(self, service: str, order_id: str) -> list[Seen] | None:
        """Its ledger's rows of the order; None when it does not answer, or with something else."""
        url = URL(f"{self.addresses[service]}/v1/deliveries").with_query(order_id=order_id, limit="100")
        try:
            async with self._session.get(url, allow_redirects=False) as answer:
                answer.raise_for_status()
                return _Answer.model_validate_json(await answer.content.read(MAX_ANSWER_BYTES)).items
        except (ClientError, OSError, TimeoutError, ValidationError) as error:
            # Whoever asks for a timeline wants to know just this; the log has the details.
            log.warning("service did not say what became of an order", service=service, error=brief(error))
            return None
