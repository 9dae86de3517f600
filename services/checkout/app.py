"""The wiring of checkout: everything long-lived is made here, and closed in reverse order."""

from __future__ import annotations

from contextlib import AsyncExitStack

from services.checkout.commands.batch import Batches, Command, Result
from services.checkout.commands.catalogue import Catalogue
from services.checkout.commands.checkout import Checkout
from services.checkout.commands.keys import DatabaseKeys
from services.checkout.commands.recover import Recovery
from services.checkout.commands.refund import Refunds
from services.checkout.commands.refund_book import RefundBook
from services.checkout.commands.refund_recovery import RefundRecovery
from services.checkout.commands.seed import seed as put_seed
from services.checkout.payments.stripe import StripeProvider
from services.checkout.routes import catalogue, ops, orders, refunds
from services.checkout.routes.wiring import Wiring
from services.checkout.settings import CheckoutSettings
from shared.bus.log import EventLog
from shared.bus.relay import Relays
from shared.bus.streams import RedisStreams
from shared.runtime.clock import SystemClock
from shared.runtime.db import Database
from shared.runtime.group_commit import GroupCommit
from shared.runtime.process import Service
from shared.web.app import create_app
from shared.web.health import Check, Health, timed
from shared.web.limits import Quota

NAME = "checkout"


async def build(settings: CheckoutSettings, stack: AsyncExitStack) -> Service:
    """Put checkout together."""
    db = database(settings, stack)
    streams = RedisStreams(settings.redis_url.get_secret_value(), f"{NAME}-{settings.consumer_name}")
    stack.push_async_callback(streams.close)
    provider = payment_provider(settings)
    stack.push_async_callback(provider.close)
    clock = SystemClock()
    log = EventLog(settings.partitions)
    relays = Relays(db, log, streams, settings.window)
    work = Batches(log, settings.source, settings.lease_s, settings.reservation_s)
    batches: GroupCommit[Command, Result] = GroupCommit(
        "orders", db, work.execute, work.recall, after_commit=relays.wake_children
    )
    checkout = Checkout(db, batches, provider, clock)
    recovery = Recovery(db, batches, provider, clock, settings.lease_s, settings.reservation_s)
    book = RefundBook(log, settings.source, settings.lease_s)
    giving_back = Refunds(db, book, provider, clock, relays.wake_children)
    refund_recovery = RefundRecovery(db, giving_back, provider, clock, settings.lease_s)
    checks = [
        Check("postgres", timed(db.ping), critical=True),
        Check("redis", timed(streams.ping)),  # orders are taken without it
        Check("payments", timed(provider.ping)),
    ]
    health = Health(NAME, checks, [batches, checkout, recovery, giving_back, refund_recovery, relays])
    app = create_app(
        service=NAME,
        settings=settings,
        health=health,
        keys=DatabaseKeys(db, Quota(settings.key_rate, settings.key_burst)),
        routers=[orders.router, refunds.router, catalogue.router, ops.router],
        direct={orders.place: orders.place_directly},
        description="Takes orders: reserves stock, takes the payment, and tells the rest of the world.",
    )
    app.state.wiring = Wiring(checkout, giving_back, Catalogue(db), db, log, clock, health)
    return Service(app, [checkout, recovery, giving_back, refund_recovery, relays], [batches], health.drain)


def database(settings: CheckoutSettings, stack: AsyncExitStack) -> Database:
    """The pool of connections to checkout's database."""
    db = Database(
        settings.database_url.get_secret_value(),
        f"{NAME}-{settings.consumer_name}",
        settings.database_pool_size,
    )
    stack.push_async_callback(db.close)
    return db


def payment_provider(settings: CheckoutSettings) -> StripeProvider:
    """The payment provider of the settings."""
    return StripeProvider(
        settings.payments_url,
        settings.payments_secret_key.get_secret_value(),
        timeout_s=settings.payments_timeout_s,
        connect_timeout_s=settings.payments_connect_timeout_s,
        connections=settings.payments_connections,
    )


async def seed(settings: CheckoutSettings) -> None:
    """Put the demo catalogue and keys in, where they are missing."""
    async with AsyncExitStack() as stack, database(settings, stack).transaction() as connection:
        await put_seed(connection, settings)
