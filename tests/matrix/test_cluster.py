"""In a cluster: shards fail over and slots move, and events flow on."""

from functools import partial

import pytest

from tests.integration.bus.conftest import SERVICE, STREAM, until
from tests.matrix.conftest import RESUMED, Record, busy, catches_up
from tests.support.servers import NewDatabase
from tests.support.topologies import Cluster, Server, Topology

SWITCHED_WITHIN_S = 60.0
KEYS = (STREAM, f"settled:{SERVICE}", f"relay:{SERVICE}")


@pytest.fixture
def cluster(redis_topology: Topology) -> Cluster:
    """Of the kind that TEST_REDIS names."""
    assert isinstance(redis_topology, Cluster), "TEST_REDIS=cluster is not set"
    return redis_topology


@pytest.mark.parametrize("how", [(), ("FORCE",), ("TAKEOVER",)], ids=["in-order", "force", "takeover"])
async def test_a_replica_that_takes_the_streams_shard_over_costs_nothing(
    cluster: Cluster, new_database: NewDatabase, record_property: Record, how: tuple[str, ...]
) -> None:
    async with busy(await new_database(), cluster.url) as (world, flow):
        old, replica = await cluster.owner(STREAM), await cluster.replica(STREAM)

        await replica.ask("CLUSTER", "FAILOVER", *how)
        await until(partial(switched, cluster, old), SWITCHED_WITHIN_S)
        record_property(RESUMED, await catches_up(world))
        await flow.more(300)

    await until(cluster.whole, SWITCHED_WITHIN_S)


async def test_a_primary_that_dies_and_comes_back_empty_costs_nothing(
    cluster: Cluster, new_database: NewDatabase, record_property: Record
) -> None:
    async with busy(await new_database(), cluster.url) as (world, flow):
        old = await cluster.owner(STREAM)

        await old.stop()
        await until(partial(switched, cluster, old), SWITCHED_WITHIN_S)
        record_property(RESUMED, await catches_up(world))
        await old.start()
        await flow.more(300)

    await until(cluster.whole, SWITCHED_WITHIN_S)


@pytest.mark.parametrize("key", KEYS)
async def test_a_slot_that_moves_while_events_flow_costs_nothing(
    cluster: Cluster, new_database: NewDatabase, record_property: Record, key: str
) -> None:
    async with busy(await new_database(), cluster.url) as (world, flow):
        source, target = await cluster.owner(key), await cluster.stranger(key)
        slot = await source.ask("CLUSTER", "KEYSLOT", key)
        source_id, target_id = await source.ask("CLUSTER", "MYID"), await target.ask("CLUSTER", "MYID")

        await target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", source_id)
        await source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", target_id)
        await flow.more(50)
        # From here on the source sends everybody on to the target, which answers to those who ask only.
        await source.ask("MIGRATE", "127.0.0.1", target.port, key, 0, 5000)
        await flow.more(50)
        record_property(RESUMED, await catches_up(world))
        for node in (target, source):
            await node.ask("CLUSTER", "SETSLOT", slot, "NODE", target_id)
        await flow.more(300)
        record_property(RESUMED, await catches_up(world))

    assert await cluster.owner(key) is target


async def switched(cluster: Cluster, old: Server) -> bool:
    return await cluster.owner(STREAM) is not old
