"""The payment sandbox put together: the API, the controls and the pages in one ASGI application."""

from typing import Any

from deploy.local.payments.api import Api
from deploy.local.payments.control import make_control
from deploy.local.payments.faults import FaultPlan
from deploy.local.payments.ledger import Ledger


class Sandbox:
    def __init__(self, ledger: Ledger, secret_key: str) -> None:
        faults = FaultPlan()
        self._api = Api(ledger, faults, secret_key)
        self._control = make_control(ledger, faults)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["path"].startswith("/v1/"):
            await self._api(scope, receive, send)
        else:
            await self._control(scope, receive, send)
