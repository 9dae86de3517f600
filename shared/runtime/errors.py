"""The exception tree, and the one table that says what to do about errors of Redis, Postgres, HTTP and SMTP.

OrderstreamError
├── ConfigurationError   a setting is missing or wrong: the process stops with one line
├── DeadEvent            this event can never be handled: no retry
├── ProcessKilled        this event ends the process that handles it: retry, in a process of its own
├── Outage               a dependency of the handler is down: pause, spend no attempt
└── CommitUnknown        the answer to COMMIT was lost and reading back did not settle it
"""

from __future__ import annotations

import asyncio
import re
from enum import StrEnum

import asyncpg
import redis.exceptions as redis_errors
from sqlalchemy.exc import DBAPIError, InterfaceError
from sqlalchemy.exc import TimeoutError as PoolTimeout


class OrderstreamError(Exception):
    """Base of every error that Orderstream raises on purpose."""


class ConfigurationError(OrderstreamError):
    """A setting is missing or wrong. The text is one line that says what to do."""


class DeadEvent(OrderstreamError):
    """Raised by a handler for an event that can never work; it goes to the dead letters at once."""


class ProcessKilled(OrderstreamError):
    """An event ended the process that handled it."""


class Outage(OrderstreamError):
    """Raised by a handler whose dependency is down; consuming pauses and no attempt is spent."""


class CommitUnknown(OrderstreamError):
    """The connection broke during COMMIT and the outcome could not be read back."""


class Action(StrEnum):
    """What a loop does about an error that it did not cause."""

    RETRY = "retry"  # the same call may work in a moment
    RECONNECT = "reconnect"  # the connection is gone or not to be trusted
    REDISCOVER = "rediscover"  # the server is no longer the one to ask
    REBUILD = "rebuild"  # the stream is not what it should be: make it anew from the log
    PARK = "park"  # somebody has to look: alert, wait long, try again
    UNKNOWN = "unknown"  # nobody foresaw it: alert, and treat it as the fault of what was being done


# First word of a Redis error reply -> what to do. https://redis.io/docs/latest/develop/reference/protocol-spec/#simple-errors
REDIS_REPLIES: dict[str, Action] = {
    "LOADING": Action.RETRY,
    "BUSY": Action.RETRY,
    "TRYAGAIN": Action.RETRY,
    "NOREPLICAS": Action.RETRY,
    "OOM": Action.RETRY,
    "MISCONF": Action.RETRY,
    "READONLY": Action.REDISCOVER,
    "MOVED": Action.REDISCOVER,
    "ASK": Action.REDISCOVER,
    "CLUSTERDOWN": Action.REDISCOVER,
    "MASTERDOWN": Action.REDISCOVER,
    "UNBLOCKED": Action.REBUILD,
    "NOGROUP": Action.REBUILD,
    "WRONGTYPE": Action.REBUILD,
    "NOPERM": Action.PARK,
    "NOAUTH": Action.PARK,
    "WRONGPASS": Action.PARK,
}

# Redis before 7 wraps what a command inside a script answered: "Error running script (call to f_…): @user_script:20:
# WRONGTYPE Operation against …", and what it was not even let do: "… @user_script:20: @user_script: 20: -READONLY …".
# Only the second half of that is left when the script gets the error itself, with `pcall`, and hands it on.
_INSIDE_SCRIPT = re.compile(r"^(?:Error running script .*)?@user_script: ?\d+: -?([A-Z]+) ")

# SQLSTATE (or its class) -> what to do. https://www.postgresql.org/docs/current/errcodes-appendix.html
POSTGRES_STATES: dict[str, Action] = {
    "40001": Action.RETRY,  # serialization_failure
    "40P01": Action.RETRY,  # deadlock_detected
    "55P03": Action.RETRY,  # lock_not_available: lock_timeout ran out
    "57014": Action.RETRY,  # query_canceled: statement_timeout ran out
    "08": Action.RECONNECT,  # connection exceptions
    "57P": Action.RECONNECT,  # admin_shutdown, crash_shutdown, cannot_connect_now, idle_session_timeout
    "25P03": Action.RECONNECT,  # idle_in_transaction_session_timeout
    "25006": Action.REDISCOVER,  # read_only_sql_transaction: a standby answered
    "53": Action.RETRY,  # insufficient resources: too many connections, disk full, out of memory
    "58": Action.RETRY,  # system error: the disk failed
    "28": Action.PARK,  # invalid authorization
    "3D000": Action.PARK,  # the database does not exist
    "42P01": Action.PARK,  # undefined_table: not migrated yet
    "42501": Action.PARK,  # insufficient_privilege
}


def classify(error: BaseException) -> Action:
    """What to do about `error`; `UNKNOWN` for everything that is not in the tables above."""
    if isinstance(error, redis_errors.RedisError):
        return _classify_redis(error)
    if isinstance(error, asyncpg.InternalClientError):
        # The server said goodbye while nobody asked it anything, and the driver has not seen yet that it is gone.
        return Action.RECONNECT
    if isinstance(error, DBAPIError | asyncpg.PostgresError | asyncpg.InterfaceError):
        return _classify_postgres(error)
    if isinstance(error, PoolTimeout):
        return Action.RETRY
    if isinstance(error, OSError | asyncio.TimeoutError | EOFError):
        return Action.RECONNECT
    return Action.UNKNOWN


def is_infrastructure(error: BaseException) -> bool:
    """Whether the error says something about a server or the network rather than about the work in hand."""
    return isinstance(error, CommitUnknown) or classify(error) is not Action.UNKNOWN


def timed_out(error: BaseException) -> bool:
    """Whether Postgres, or we, gave up a statement that took too long."""
    return isinstance(error, TimeoutError) or sqlstate(error) == "57014"


def sqlstate(error: BaseException) -> str:
    """The five-character SQLSTATE, or an empty string when the server never answered."""
    answered = error.orig if isinstance(error, DBAPIError) else error
    return str(getattr(answered, "sqlstate", None) or "")


def _classify_redis(error: redis_errors.RedisError) -> Action:
    # redis-py strips the first word of the replies that it has a class for, so the class name speaks for them.
    by_class = {
        "BusyLoadingError": "LOADING",
        "ReadOnlyError": "READONLY",
        "NoPermissionError": "NOPERM",
        "AuthenticationError": "NOAUTH",
        "OutOfMemoryError": "OOM",
        "MovedError": "MOVED",
        "AskError": "ASK",
        "TryAgainError": "TRYAGAIN",
        "ClusterDownError": "CLUSTERDOWN",
        "MasterDownError": "MASTERDOWN",
    }
    words = str(error)
    if found := _INSIDE_SCRIPT.search(words):
        words = found[1]
    word = by_class.get(type(error).__name__) or words.split(" ", 1)[0]
    if word in REDIS_REPLIES:
        return REDIS_REPLIES[word]
    if isinstance(error, redis_errors.ConnectionError | redis_errors.TimeoutError):
        return Action.RECONNECT
    return Action.UNKNOWN


def _classify_postgres(error: DBAPIError | asyncpg.PostgresError | asyncpg.InterfaceError) -> Action:
    state = sqlstate(error)
    for length in (5, 3, 2):
        if action := POSTGRES_STATES.get(state[:length]):
            return action
    return Action.RECONNECT if _never_answered(error) else Action.UNKNOWN


def _never_answered(error: DBAPIError | asyncpg.PostgresError | asyncpg.InterfaceError) -> bool:
    if isinstance(error, DBAPIError):
        return error.connection_invalidated or isinstance(error, InterfaceError) or isinstance(error.orig, OSError)
    # A value that the driver cannot encode is an InterfaceError too.
    return isinstance(error, asyncpg.InterfaceError) and not isinstance(error, ValueError)
