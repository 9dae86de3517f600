"""The wiring of checkout: everything long-lived is made here, and closed in reverse order."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AsyncExitStack

from services.checkout.commands.batch import Batches, Command, Result
from services.checkout.commands.catalogue import Catalogue
from services.checkout.commands.checkout import Checkout
from services.checkout.commands.downstream import Downstream
from services.checkout.commands.forget import Forgetting
from services.checkout.commands.keys import DatabaseKeys
from services.checkout.commands.reconcile import Reconciliation
from services.checkout.commands.recover import Recovery
from services.checkout.commands.refund import Refunds
from services.checkout.commands.refund_book import RefundBook
from services.checkout.commands.refund_recovery import RefundRecovery
from services.checkout.commands.seed import seed as put_seed
from services.checkout.commands.webhooks import Webhooks
from services.checkout.payments.breaker import Breaker, State
from services.checkout.payments.guard import GuardedProvider, Lane
from services.checkout.payments.stripe import StripeProvider
from services.checkout.routes import catalogue, ops, orders, partitions, refunds, subscriptions, timeline
from services.checkout.routes import webhooks as provider_webhooks
from services.checkout.routes.wiring import Wiring
from services.checkout.settings import CheckoutSettings
from shared.bus.fitness import FitnessCheck
from shared.bus.log import EventLog
from shared.bus.relays import Relays
from shared.bus.retention import LogRetention
from shared.bus.streams import RedisStreams
from shared.runtime.admission import Admission, Bounds
from shared.runtime.clock import SystemClock
from shared.runtime.db import Database
from shared.runtime.group_commit import GroupCommit
from shared.runtime.process import Service
from shared.web.app import create_app
from shared.web.door import Door
from shared.web.health import Check, Health, Probe, Reading, Status, timed
from shared.web.limits import Quota
from shared.web.readers import ReadersProbe, StreamsProbe, retention_check

NAME = "checkout"


async def build(settings: CheckoutSettings, stack: AsyncExitStack) -> Service:
    """Put checkout together."""
    db = database(settings, stack)
    streams = RedisStreams(settings.redis_url.get_secret_value(), f"{NAME}-{settings.consumer_name}")
    stack.push_async_callback(streams.close)
    provider = payment_provider(settings)
    stack.push_async_callback(provider.close)
    downstream = Downstream(settings.services, settings.services_key.get_secret_value())
    stack.push_async_callback(downstream.close)
    clock = SystemClock()
    breaker = Breaker(clock.monotonic)
    lanes = {lane.name: GuardedProvider(provider, breaker, lane, clock) for lane in payment_lanes(settings)}
    log = EventLog()
    relays = Relays(db, log, streams, settings.window, settings.partitions)
    work = Batches(log, settings.source, settings.lease_s, settings.reservation_s)
    batches: GroupCommit[Command, Result] = GroupCommit(
        "orders", db, work.execute, work.recall, at_once=work.at_once, after_commit=relays.wake_children
    )
    admission = Admission(bounds(settings))
    checkout = Checkout(db, batches, lanes["orders"], clock, admission)
    recovery = Recovery(db, batches, lanes["recovery"], clock, settings.lease_s, settings.reservation_s)
    book = RefundBook(log, settings.source, settings.lease_s)
    giving_back = Refunds(db, book, lanes["orders"], clock, relays.wake_children)
    refund_recovery = RefundRecovery(db, giving_back, lanes["recovery"], clock, settings.lease_s)
    webhooks = Webhooks(db, lanes["recovery"], giving_back, clock, webhook_secrets(settings))
    overlap_s = settings.reservation_s + settings.lease_s
    every_s = settings.reconcile_every_s
    reconciliation = Reconciliation(db, lanes["recovery"], giving_back, every_s=every_s, overlap_s=overlap_s)
    checks = [
        Check("postgres", timed(db.ping), critical=True),
        Check("redis", timed(streams.ping)),  # orders are taken without it
        Check("payments", timed(provider.ping)),
        Check("payments", breaker_probe(breaker)),  # of its own: it is of interest when the other one fails
    ]
    door = Door("POST", "/v1/orders", admission)
    readers = ReadersProbe(db, log, relays, settings.forgotten_after_s)
    retention = LogRetention(db, settings.retention_s)
    checks += [Check("orders", door.probe), Check("subscriptions", readers), retention_check(retention)]
    checks.append(Check("streams", StreamsProbe(db, log, streams, settings.window, settings.consumers)))
    upkeep = [retention, Forgetting(db), FitnessCheck(streams)]
    loops = [checkout, recovery, giving_back, refund_recovery, webhooks, *upkeep, reconciliation, relays]
    health = Health(NAME, checks, [batches, *loops, webhooks.batches])
    customers = [orders.router, refunds.router, timeline.router]
    operators = [ops.router, partitions.router, subscriptions.router]
    app = create_app(
        service=NAME,
        settings=settings,
        health=health,
        keys=DatabaseKeys(db, Quota(settings.key_rate, settings.key_burst)),
        routers=[*customers, catalogue.router, provider_webhooks.router, *operators],
        direct={orders.place: orders.place_directly},
        door=door,
        description="Takes orders: reserves stock, takes the payment, and tells the rest of the world.",
    )
    app.state.wiring = Wiring(checkout, giving_back, webhooks, Catalogue(db), db, log, clock, health, downstream)
    return Service(app, loops, [batches, webhooks.batches], health.drain, door)


def database(settings: CheckoutSettings, stack: AsyncExitStack) -> Database:
    """The pool of connections to checkout's database."""
    db = Database(
        settings.database_url.get_secret_value(),
        f"{NAME}-{settings.consumer_name}",
        settings.database_pool_size,
    )
    stack.push_async_callback(db.close)
    return db


def bounds(settings: CheckoutSettings) -> Bounds:
    """How many orders may be in flight, and how long they may wait."""
    return Bounds(
        settings.orders_in_flight_least,
        settings.orders_in_flight_most,
        settings.order_wait_target_s,
        settings.order_wait_most_s,
    )


def payment_provider(settings: CheckoutSettings) -> StripeProvider:
    """The payment provider of the settings."""
    return StripeProvider(
        settings.payments_url,
        settings.payments_secret_key.get_secret_value(),
        timeout_s=settings.payments_timeout_s,
        connect_timeout_s=settings.payments_connect_timeout_s,
        connections=settings.payments_connections + settings.payments_recovery_connections,
    )


def payment_lanes(settings: CheckoutSettings) -> tuple[Lane, Lane]:
    """One for what somebody waits for, and one for what nobody does."""
    connecting_s, rate = settings.payments_connect_timeout_s, settings.payments_rate
    # Waiting, charging and a quick second try must end before the lease; its last second is for the second try.
    wait_s = min(connecting_s, settings.lease_s - 1 - connecting_s - settings.payments_timeout_s)
    return (
        Lane("orders", settings.payments_connections, 0.9 * rate, wait_s, retries=True),
        Lane("recovery", settings.payments_recovery_connections, 0.1 * rate, wait_s, retries=False),
    )


def webhook_secrets(settings: CheckoutSettings) -> list[str]:
    """What the provider's webhooks may be signed with."""
    return [secret.get_secret_value() for secret in settings.payments_webhook_secret]


def breaker_probe(breaker: Breaker) -> Probe:
    """Whether the payment provider is called at all."""

    async def probe() -> Mapping[str, Reading]:
        state = breaker.state
        status = Status.PASS if state is State.CLOSED else Status.WARN
        return {"breaker": Reading(state.name.lower().replace("_", "-"), status=status)}

    return probe


async def seed(settings: CheckoutSettings) -> None:
    """Put the demo catalogue and keys in, where they are missing."""
    async with AsyncExitStack() as stack, database(settings, stack).transaction() as connection:
        await put_seed(connection, settings)
