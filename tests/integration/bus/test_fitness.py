"""A stream server that is set up badly is told so once, and used all the same."""

import pytest
from structlog.testing import capture_logs

from shared.bus.fitness import WHAT_TO_DO, FitnessCheck, unfit
from shared.bus.streams import RedisStreams
from shared.runtime import metrics
from tests.support.redis_server import redis_server


async def test_a_server_that_evicts_and_forgets_is_warned_of_once_until_it_is_set_right() -> None:
    async with redis_server() as server:
        await server.configure(maxmemory_policy="allkeys-lru")
        streams = RedisStreams(server.url, "test")
        check = FitnessCheck(streams)

        with capture_logs() as logs:
            await check.run_once()
            await check.run_once()
        wrong = [metrics.UNFIT.labels(reason)._value.get() for reason in ("evicts", "forgets", "old")]
        await server.configure(maxmemory_policy="noeviction", appendonly="yes")
        await check.run_once()
        right = [metrics.UNFIT.labels(reason)._value.get() for reason in ("evicts", "forgets", "old")]
        await streams.close()

    assert [one["event"] for one in logs] == [WHAT_TO_DO["evicts"], WHAT_TO_DO["forgets"]]
    assert wrong == [1, 1, 0]
    assert right == [0, 0, 0]


@pytest.mark.parametrize(("has_autoclaim", "expected"), [(True, set()), (False, {"old"})])
def test_a_server_that_says_nothing_of_itself_is_judged_by_what_it_knows(
    has_autoclaim: bool, expected: set[str]
) -> None:
    assert unfit({}, has_autoclaim=has_autoclaim) == expected
