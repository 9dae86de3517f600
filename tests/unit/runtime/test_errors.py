"""Every error that a server can answer with has its place in the table, in the shape in which the client raises it."""

import asyncio
import errno
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, cast

import pytest
import pytest_asyncio
import redis.exceptions as redis_errors
from asyncpg import DataError, PostgresError
from redis._parsers.base import BaseParser
from redis.asyncio import Redis
from sqlalchemy import Integer, Text, bindparam, text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.exc import DBAPIError, StatementError
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.types import TypeEngine

from shared.runtime.db import Database
from shared.runtime.driver import Direct
from shared.runtime.errors import (
    POSTGRES_STATES,
    REDIS_REPLIES,
    Action,
    CommitUnknown,
    DeadEvent,
    Outage,
    classify,
    is_infrastructure,
    sqlstate,
)
from shared.runtime.statements import Many
from tests.support.servers import free_port

Run = Callable[[AsyncConnection, str], Awaitable[None]]


async def _by_sqlalchemy(connection: AsyncConnection, sql: str) -> None:
    await connection.execute(text(sql))


async def _directly(connection: AsyncConnection, sql: str) -> None:
    await Direct(sql).fetch(connection, {})


WAYS = (_by_sqlalchemy, _directly)

# What servers really say, word for word, from the sources of Redis 7 and Valkey.
REPLIES: dict[str, tuple[str, Action]] = {
    "LOADING": ("LOADING Redis is loading the dataset in memory", Action.RETRY),
    "BUSY": ("BUSY Redis is busy running a script. You can only call SCRIPT KILL", Action.RETRY),
    "TRYAGAIN": ("TRYAGAIN Multiple keys request during rehashing of slot", Action.RETRY),
    "NOREPLICAS": ("NOREPLICAS Not enough good replicas to write.", Action.RETRY),
    "OOM": ("OOM command not allowed when used memory > 'maxmemory'.", Action.RETRY),
    "MISCONF": ("MISCONF Redis is configured to save RDB snapshots, but it's unable to persist", Action.RETRY),
    "READONLY": ("READONLY You can't write against a read only replica.", Action.REDISCOVER),
    "MOVED": ("MOVED 3999 127.0.0.1:6381", Action.REDISCOVER),
    "ASK": ("ASK 3999 127.0.0.1:6381", Action.REDISCOVER),
    "CLUSTERDOWN": ("CLUSTERDOWN The cluster is down", Action.REDISCOVER),
    "MASTERDOWN": ("MASTERDOWN Link with MASTER is down and replica-serve-stale-data is 'no'", Action.REDISCOVER),
    "UNBLOCKED": ("UNBLOCKED the stream key no longer exists", Action.REBUILD),
    "NOGROUP": ("NOGROUP No such key 'events:email:0' or consumer group 'email'", Action.REBUILD),
    "WRONGTYPE": ("WRONGTYPE Operation against a key holding the wrong kind of value", Action.REBUILD),
    "NOPERM": ("NOPERM User email has no permissions to run the 'xadd' command", Action.PARK),
    "NOAUTH": ("NOAUTH Authentication required.", Action.PARK),
    "WRONGPASS": ("WRONGPASS invalid username-password pair or user is disabled.", Action.PARK),
}

# One state per row of the table; rows that are classes get a member of theirs.
STATES: dict[str, tuple[str, Action]] = {
    "40001": ("40001", Action.RETRY),
    "40P01": ("40P01", Action.RETRY),
    "55P03": ("55P03", Action.RETRY),
    "57014": ("57014", Action.RETRY),
    "08": ("08006", Action.RECONNECT),
    "57P": ("57P03", Action.RECONNECT),
    "25P03": ("25P03", Action.RECONNECT),
    "25006": ("25006", Action.REDISCOVER),
    "53": ("53300", Action.RETRY),
    "58": ("58030", Action.RETRY),
    "28": ("28P01", Action.PARK),
    "3D000": ("3D000", Action.PARK),
    "42P01": ("42P01", Action.PARK),
    "42501": ("42501", Action.PARK),
}

# Errors of the work itself: no server is to blame, and nothing gets better by waiting.
FAULTS = ["23505", "23514", "22021", "22003", "42601", "42703", "0A000", "P0001"]


@pytest_asyncio.fixture(scope="module")
async def db(database_url: str) -> AsyncIterator[Database]:
    db = Database(database_url, "test-errors", 2)
    yield db
    await db.close()


@pytest_asyncio.fixture
async def server(redis_url: str) -> AsyncIterator[Redis]:
    client = Redis.from_url(redis_url, protocol=2)
    await cast("Awaitable[Any]", client.flushall())
    yield client
    await client.aclose()


def _as_raised(reply: str) -> redis_errors.RedisError:
    error: redis_errors.RedisError = BaseParser.parse_error(reply)  # type: ignore[no-untyped-call]
    return error


def test_every_row_of_both_tables_is_tested() -> None:
    assert REPLIES.keys() == REDIS_REPLIES.keys()
    assert STATES.keys() == POSTGRES_STATES.keys()


@pytest.mark.parametrize("word", sorted(REPLIES))
def test_a_redis_reply_is_known_in_the_class_that_the_client_makes_of_it(word: str) -> None:
    reply, action = REPLIES[word]

    error = _as_raised(reply)

    assert isinstance(error, redis_errors.RedisError)
    assert classify(error) is action
    assert is_infrastructure(error)


RUNNING = "ERR Error running script (call to f_1a2b): "
REFUSED, FAILED, CAUGHT = (
    f"{RUNNING}@user_script:20: @user_script: 20: -",
    f"{RUNNING}@user_script:20: ",
    "@user_script: 20: -",
)


@pytest.mark.parametrize(
    ("word", "wrapping"),
    [
        *((word, REFUSED) for word in ("READONLY", "OOM", "MISCONF", "NOREPLICAS")),
        *((word, CAUGHT) for word in ("READONLY", "OOM", "MISCONF", "NOREPLICAS")),
        *((word, FAILED) for word in ("WRONGTYPE", "NOGROUP")),
    ],
)
def test_a_reply_inside_a_script_is_known_in_the_words_in_which_redis_6_wraps_it(word: str, wrapping: str) -> None:
    reply, action = REPLIES[word]

    error = _as_raised(f"{wrapping}{reply}")

    assert classify(error) is action


@pytest.mark.parametrize(
    "reply", ["ERR syntax error", "EXECABORT Transaction discarded", "NOSCRIPT No matching script."]
)
def test_a_redis_reply_that_nobody_foresaw_is_unknown(reply: str) -> None:
    error = _as_raised(reply)

    assert classify(error) is Action.UNKNOWN
    assert not is_infrastructure(error)


@pytest.mark.parametrize(
    ("error", "action"),
    [
        (redis_errors.ConnectionError("Connection closed by server."), Action.RECONNECT),
        (redis_errors.TimeoutError("Timeout reading from 127.0.0.1:6379"), Action.RECONNECT),
        (redis_errors.MaxConnectionsError("Too many connections"), Action.RECONNECT),
        (_as_raised("ERR max number of clients reached"), Action.RECONNECT),
        (ConnectionRefusedError(errno.ECONNREFUSED, "refused"), Action.RECONNECT),
        (ConnectionResetError(errno.ECONNRESET, "reset"), Action.RECONNECT),
        (BrokenPipeError(errno.EPIPE, "broken pipe"), Action.RECONNECT),
        (OSError(errno.EHOSTUNREACH, "no route"), Action.RECONNECT),
        (OSError(errno.EMFILE, "too many open files"), Action.RECONNECT),
        (TimeoutError(), Action.RECONNECT),
        (asyncio.IncompleteReadError(b"", 5), Action.RECONNECT),
        (ValueError("a bug"), Action.UNKNOWN),
        (KeyError("a bug"), Action.UNKNOWN),
        (DeadEvent("can never work"), Action.UNKNOWN),
        (Outage("mail server"), Action.UNKNOWN),
    ],
    ids=repr,
)
def test_an_error_of_the_network_or_of_the_code_is_told_apart(error: Exception, action: Action) -> None:
    assert classify(error) is action
    assert is_infrastructure(error) is (action is not Action.UNKNOWN)


def test_an_unknown_commit_is_nobodys_fault() -> None:
    assert is_infrastructure(CommitUnknown("reset"))


async def test_a_redis_that_is_not_there_is_to_be_reconnected() -> None:
    client = Redis(port=free_port())

    with pytest.raises(redis_errors.ConnectionError) as refusal:
        await client.ping()

    assert classify(refusal.value) is Action.RECONNECT
    await client.aclose()


async def test_the_real_server_says_wrongtype_and_nogroup(server: Redis) -> None:
    await cast("Awaitable[Any]", server.set("text", "a"))

    assert await _action(lambda: server.xadd("text", {"event": "x"})) is Action.REBUILD
    assert await _action(lambda: server.xreadgroup("email", "one", {"none": ">"})) is Action.REBUILD


async def test_a_reader_whose_stream_is_deleted_under_it_rebuilds(server: Redis, redis_url: str) -> None:
    await server.xgroup_create("stream", "email", "0", mkstream=True)
    reader = Redis.from_url(redis_url, protocol=2)

    reading = asyncio.create_task(_action(lambda: reader.xreadgroup("email", "one", {"stream": ">"}, block=5000)))
    for _ in range(1000):
        if (await server.info("clients"))["blocked_clients"]:
            break
    await server.delete("stream")

    assert await reading is Action.REBUILD
    await reader.aclose()


@pytest.mark.parametrize(
    ("setting", "value", "action"),
    [("maxmemory", "1", Action.RETRY), ("min-replicas-to-write", "3", Action.RETRY)],
)
async def test_a_real_server_that_takes_no_writes_for_now_is_tried_again(
    server: Redis, setting: str, value: str, action: Action
) -> None:
    async with _configured(server, setting, value):
        assert await _action(lambda: server.xadd("stream", {"event": "x"})) is action


async def test_a_real_replica_is_not_the_one_to_ask(server: Redis) -> None:
    await server.replicaof("127.0.0.1", str(free_port()))
    try:
        assert await _action(lambda: server.xadd("stream", {"event": "x"})) is Action.REDISCOVER
        async with _configured(server, "replica-serve-stale-data", "no"):
            assert await _action(lambda: server.xrange("stream")) is Action.REDISCOVER
    finally:
        await server.replicaof("NO", "ONE")


async def test_a_real_server_that_does_not_know_us_needs_somebody_to_look(server: Redis, redis_url: str) -> None:
    await server.acl_setuser("reader", enabled=True, passwords=["+pass"], commands=["+xread"], keys=["*"])
    address = redis_url.rpartition("://")[2].rpartition("@")[2]
    allowed = Redis.from_url(f"redis://reader:pass@{address}", protocol=2)
    stranger = Redis.from_url(f"redis://reader:wrong@{address}", protocol=2)

    assert await _action(lambda: allowed.xadd("stream", {"event": "x"})) is Action.PARK
    assert await _action(lambda: stranger.xadd("stream", {"event": "x"})) is Action.PARK

    await allowed.aclose()
    await stranger.aclose()
    await server.acl_deluser("reader")


@pytest.mark.parametrize("run", WAYS)
@pytest.mark.parametrize("row", sorted(STATES))
async def test_a_real_postgres_error_is_known_by_its_state(db: Database, row: str, run: Run) -> None:
    state, action = STATES[row]

    error = await _raised(db, f"DO $$ BEGIN RAISE EXCEPTION 'on purpose' USING ERRCODE = '{state}'; END $$", run)

    assert sqlstate(error) == state
    assert classify(error) is action
    assert is_infrastructure(error)


@pytest.mark.parametrize("run", WAYS)
@pytest.mark.parametrize("state", FAULTS)
async def test_a_fault_of_the_work_is_not_blamed_on_the_server(db: Database, state: str, run: Run) -> None:
    error = await _raised(db, f"DO $$ BEGIN RAISE EXCEPTION 'on purpose' USING ERRCODE = '{state}'; END $$", run)

    assert classify(error) is Action.UNKNOWN


@pytest.mark.parametrize("run", WAYS)
async def test_a_terminated_connection_is_to_be_reconnected(db: Database, run: Run) -> None:
    error = await _raised(db, "SELECT pg_terminate_backend(pg_backend_pid())", run)

    assert classify(error) is Action.RECONNECT


@pytest.mark.parametrize("kind", [ARRAY, Many])
@pytest.mark.parametrize(("element", "value"), [(Integer, 2**40), (Integer, "seven"), (Text, "\ud800"), (Text, "\x00")])
async def test_an_argument_that_does_not_fit_its_column_is_a_fault_of_the_work(
    db: Database, kind: Callable[..., TypeEngine[Any]], element: type[TypeEngine[Any]], value: object
) -> None:
    """The driver refuses an array before anything is sent, with the class that it also has for broken connections."""
    asked = text("SELECT unnest(:values)").bindparams(bindparam("values", type_=kind(element)))

    with pytest.raises(StatementError) as refusal:
        async with db.transaction() as connection:
            await connection.execute(asked, {"values": [value]})

    assert classify(refusal.value) is Action.UNKNOWN


@pytest.mark.parametrize("value", [2**40, "seven"])
async def test_an_argument_that_the_driver_itself_cannot_send_is_a_fault_of_the_work(
    db: Database, value: object
) -> None:
    with pytest.raises(DataError) as refusal:
        async with db.transaction() as connection:
            await Direct("SELECT CAST(:value AS integer)").fetch(connection, {"value": value})

    assert classify(refusal.value) is Action.UNKNOWN


async def test_a_postgres_that_is_not_there_is_to_be_reconnected() -> None:
    db = Database(f"postgresql://nobody@127.0.0.1:{free_port()}/none", "test-errors", 2)

    with pytest.raises(OSError, match="Connect") as refusal:
        await db.ping()

    assert classify(refusal.value) is Action.RECONNECT
    await db.close()


async def test_a_database_that_does_not_exist_needs_somebody_to_look(database_url: str) -> None:
    db = Database(f"{database_url}_none", "test-errors", 2)

    with pytest.raises(Exception, match="does not exist") as refusal:
        await db.ping()

    assert classify(refusal.value) is Action.PARK
    await db.close()


async def test_a_full_pool_is_tried_again(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.runtime.db.POOL_TIMEOUT_S", 0.05)
    db = Database(database_url, "test-errors", 1)

    async with db.reading():
        with pytest.raises(Exception, match="QueuePool") as refusal:
            await db.ping()

    assert classify(refusal.value) is Action.RETRY
    await db.close()


async def _raised(db: Database, sql: str, run: Run) -> Exception:
    with pytest.raises((DBAPIError, PostgresError)) as refusal:
        async with db.transaction() as connection:
            await run(connection, sql)
    return cast("Exception", refusal.value)


async def _action(call: Callable[[], Awaitable[Any]]) -> Action:
    with pytest.raises(redis_errors.RedisError) as refusal:
        await call()
    return classify(refusal.value)


@asynccontextmanager
async def _configured(server: Redis, setting: str, value: str) -> AsyncIterator[None]:
    before = str((await server.config_get(setting))[setting])
    await server.config_set(setting, value)
    try:
        yield
    finally:
        with suppress(redis_errors.ResponseError):
            await server.config_set(setting, before)
