"""What the routes work with, put together in `app.build`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from services.checkout.commands.catalogue import Catalogue
from services.checkout.commands.checkout import Checkout
from services.checkout.commands.downstream import Downstream
from services.checkout.commands.refund import Refunds
from services.checkout.commands.webhooks import Webhooks
from shared.bus.log import EventLog
from shared.runtime.clock import Clock
from shared.runtime.db import Database
from shared.web.health import Health


@dataclass(frozen=True, slots=True)
class Wiring:
    """Everything that a route may use."""

    checkout: Checkout
    refunds: Refunds
    webhooks: Webhooks
    catalogue: Catalogue
    db: Database
    log: EventLog
    clock: Clock
    health: Health
    downstream: Downstream


async def _wiring(request: Request) -> Wiring:
    wiring = request.app.state.wiring
    if not isinstance(wiring, Wiring):
        raise TypeError(wiring)
    return wiring


Wired = Annotated[Wiring, Depends(_wiring)]
