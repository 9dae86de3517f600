"""Every metric of Orderstream: the names are a contract with dashboards and alerts."""

from __future__ import annotations

from bisect import bisect_left
from itertools import accumulate
from typing import TYPE_CHECKING

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector
from typing_extensions import override

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_FAST_S = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Batched(Collector):
    """A histogram that is told of many at once: the library's own takes 2 µs for each, as long as what it measures."""

    def __init__(
        self, name: str, documentation: str, buckets: Sequence[float], registry: CollectorRegistry = REGISTRY
    ) -> None:
        """Register it, as the library's do."""
        self._name = name
        self._documentation = documentation
        self._edges = [*buckets, float("inf")]
        self._counts = [0] * len(self._edges)
        self._sum = 0.0
        registry.register(self)

    def observe(self, amounts: Sequence[float]) -> None:
        """Count every one of them."""
        for amount in amounts:
            self._counts[bisect_left(self._edges, amount)] += 1
        self._sum += sum(amounts)

    @override
    def collect(self) -> Iterator[HistogramMetricFamily]:
        names = [*map(str, map(float, self._edges[:-1])), "+Inf"]
        found = HistogramMetricFamily(self._name, self._documentation)
        found.add_metric([], [*zip(names, accumulate(self._counts), strict=True)], self._sum)
        yield found


# HTTP: requests by route template, never by path, so that ids do not become labels.
HTTP_REQUESTS = Counter("orderstream_http_requests", "Requests answered", ("method", "route", "status"))
HTTP_SECONDS = Histogram("orderstream_http_seconds", "Seconds from request to answer", ("route",), buckets=_FAST_S)

# Loops
LOOP_FAILURES = Counter("orderstream_loop_failures", "Steps of a background loop that failed", ("loop", "error"))
DEATHS = Gauge("orderstream_process_deaths", "Processes that died before this one, since the keeper began")
LOOP_LAG = Gauge("orderstream_event_loop_lag_seconds", "How late the event loop wakes a sleeper")

# Admission
IN_FLIGHT = Gauge("orderstream_admission_in_flight", "Orders that were let in and are not answered yet")
LIMIT = Gauge("orderstream_admission_limit", "How many of them there may be")
TURNED_AWAY = Counter("orderstream_admission_turned_away", "Orders answered with 503 before anything else", ("reason",))

# Group commit
BATCH_SIZE = Histogram("orderstream_batch_size", "Commands per transaction", ("group",), buckets=_SIZES)
STEP_BY_STEP = Counter("orderstream_batches_step_by_step", "Batches that one statement could not write", ("group",))

# Checkout
ORDERS = Counter("orderstream_orders", "Orders by what the client was told", ("outcome",))
CHARGE_SECONDS = Histogram("orderstream_charge_seconds", "Seconds of a payment call", ("outcome",), buckets=_FAST_S)
PAYMENT_BREAKER = Gauge("orderstream_payment_breaker", "Calls to the payment provider: 0 made, 1 tried, 2 not made")
PAYMENT_CALLS = Counter("orderstream_payment_calls", "Calls to the payment provider", ("lane",))
PAYMENT_CALLS_REFUSED = Counter(
    "orderstream_payment_calls_refused",
    "Calls that were not made: breaker open, over the rate, or all busy",
    ("lane", "why"),
)
PAYMENT_RETRIES = Counter("orderstream_payment_retries", "Second tries of charges that certainly did not happen")
PAYMENT_NOTICES = Counter("orderstream_payment_notices", "Webhooks of the payment provider", ("outcome",))
MISMATCHES = Counter("orderstream_reconciliation_mismatches", "Books that disagreed when compared", ("kind",))
RECONCILED_UNTIL = Gauge("orderstream_reconciled_until_seconds", "Time up to which the books were compared")
PAYMENT_ANSWERS_NOT_BELIEVED = Counter(
    "orderstream_payment_answers_not_believed", "Answers of the payment provider that do not fit what was asked"
)
RECOVERED = Counter("orderstream_orders_recovered", "Orders that the recovery loop finished", ("status",))
REFUNDS = Counter("orderstream_refunds", "Refunds by kind and by what the provider answered", ("kind", "outcome"))
OPEN_REFUNDS = Gauge("orderstream_refunds_open", "Refunds that may or may not have been executed, or not yet")

# Relay: one set per subscription and partition
PUBLISHED = Counter("orderstream_relay_published", "Events published", ("service", "partition"))
REBUILDS = Counter("orderstream_relay_rebuilds", "Streams rebuilt after a loss", ("service", "partition", "reason"))
REFUSED_SETTLED = Counter("orderstream_relay_settled_refused", "Settled reports that cannot be true", ("service",))
LOG_HEAD = Gauge("orderstream_log_head", "Last position of the event log", ("partition",))
CURSOR = Gauge("orderstream_relay_cursor", "Last position published", ("service", "partition"))
SETTLED = Gauge("orderstream_relay_settled", "Every position up to this one is dealt with", ("service", "partition"))
LACKING = Gauge(
    "orderstream_relay_lacking", "Events that the service had settled and now reports to lack", ("service", "partition")
)
UNFIT = Gauge("orderstream_redis_unfit", "1 for what is wrong with the settings of Redis", ("reason",))
HELD_BACK = Gauge("orderstream_relay_held_back", "1 while Redis is full and takes no events", ("service", "partition"))
SILENT = Gauge(
    "orderstream_subscription_silent_seconds", "How long a service settled nothing although events wait", ("service",)
)

# Retention
SLICES_DROPPED = Counter("orderstream_slices_dropped", "Slices of log or ledger that went after their time", ("table",))
HELD_BYTES = Gauge("orderstream_slices_held_bytes", "Disk of slices that are past and still needed", ("table",))

# Consumer
DELIVERIES = Counter("orderstream_deliveries", "Deliveries by outcome", ("outcome",))
DUPLICATES = Counter("orderstream_deliveries_duplicate", "Deliveries that the ledger knew already")
IMPOSTORS = Counter("orderstream_deliveries_impostor", "Deliveries with the id of an event but with other content")
CLAIMED = Counter("orderstream_deliveries_claimed", "Entries taken over from another consumer")
LEDGER = Gauge("orderstream_ledger_rows", "Deliveries that are not settled, by state", ("state",))
OLDEST_UNSETTLED = Gauge("orderstream_oldest_unsettled_seconds", "Age of the oldest delivery that is not settled")
EFFECT_SECONDS = Batched("orderstream_commit_to_effect_seconds", "Seconds from the event's time to its effect", _FAST_S)
PAUSED = Gauge("orderstream_consumer_paused", "1 while consuming is paused")

# Email
MAILS = Counter("orderstream_mails", "Mails by what became of them", ("outcome",))
