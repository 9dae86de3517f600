"""The payment sandbox put together: API, controls, pages and webhooks in one ASGI application."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.types import Receive, Scope, Send

from deploy.local.payments.api import Api
from deploy.local.payments.control import Control
from deploy.local.payments.events import Event
from deploy.local.payments.faults import FaultPlan
from deploy.local.payments.guard import Guard
from deploy.local.payments.ledger import Ledger
from deploy.local.payments.settings import Settings
from deploy.local.payments.webhooks import Webhooks
from deploy.local.payments.website import Website


class Sandbox:
    def __init__(self, ledger: Ledger, settings: Settings, owed: list[Event]) -> None:
        faults = FaultPlan()
        self._ledger = ledger
        self._settings = settings
        self._owed = owed
        self._api = Api(ledger, faults, settings.secret_key)
        self._rest = Starlette(
            routes=Control(ledger, faults).routes() + Website(ledger, faults).routes(),
            middleware=[Middleware(Guard)],
            lifespan=self._lifespan,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith("/v1/"):
            await self._api(scope, receive, send)
        else:
            await self._rest(scope, receive, send)

    @asynccontextmanager
    async def _lifespan(self, _app: Starlette) -> AsyncIterator[None]:
        url, secret = self._settings.webhook_url, self._settings.webhook_secret
        if url is None or secret is None:
            yield
            return
        sending = asyncio.create_task(Webhooks(self._ledger, url, secret, self._owed).run())
        yield
        sending.cancel()
        with suppress(asyncio.CancelledError):
            await sending
