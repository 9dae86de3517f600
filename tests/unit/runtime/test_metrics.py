"""The histogram of our own counts as the library's does."""

from prometheus_client import CollectorRegistry, Histogram, generate_latest

from shared.runtime.metrics import Batched

EDGES = (0.001, 0.25, 1, 2.5)
AMOUNTS = [0.0, 0.001, 0.0011, 0.25, 1.0, 2.0, 7.0]


def test_a_batch_is_counted_like_one_observation_after_the_other() -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    batched = Batched("waits", "How long", EDGES, ours)
    single = Histogram("waits", "How long", registry=theirs, buckets=EDGES)

    batched.observe(AMOUNTS)
    for amount in AMOUNTS:
        single.observe(amount)

    created = b"waits_created"  # when the library's own was made: nobody asks for that
    shown = [line for line in generate_latest(theirs).splitlines() if created not in line]
    assert generate_latest(ours).splitlines() == shown
