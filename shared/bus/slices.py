"""How log and ledger are cut into slices, so that what is past goes by dropping a table, not by deleting its rows.

Both are tables partitioned by range: the log by position, the ledger by event id, which begins with a time. So each
unique key holds over all slices, and an INSERT touches one of them. A DEFAULT partition, `<table>_rest`, takes whatever
no slice is there for: an append never fails because nobody has made the next slice.

The runtime role may not change tables. It calls functions that run with their owner's rights and make sure themselves
that nothing goes that somebody still needs; see docs/decisions/0018-slices.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from shared.runtime.statements import COMPLETED_BY

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Connection, Table

LOG_SLICE = 1_000_000  # positions; about a gigabyte
LEDGER_SLICE_MS = 7 * 86_400_000

# Both tables are locked for as long as it takes to drop a file, but the wait for that lock makes everybody else wait,
# behind it. So it is short, and what does not come about now comes about at the next call.
_PATIENCE = "SET lock_timeout = '100ms'"
_AS_OWNER = f"SECURITY DEFINER SET search_path = public, pg_temp {_PATIENCE}"

_NEEDS = """
CREATE OR REPLACE FUNCTION slices_of(parent regclass) RETURNS TABLE (slice regclass, upper text)
LANGUAGE sql STABLE AS $$
    SELECT c.oid::regclass, substring(pg_get_expr(c.relpartbound, c.oid) FROM $re$TO \\('?([^')]+)$re$)
    FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
    WHERE i.inhparent = parent AND pg_get_expr(c.relpartbound, c.oid) <> 'DEFAULT'
$$
"""

# CREATE TABLE … PARTITION OF would lock the whole table; to attach one locks only the rest, which has to be looked
# through. Rows that strayed there move into the slice that is theirs.
_ADD = """
CREATE OR REPLACE FUNCTION add_slice(parent regclass, key text, lower text, upper text, beginning boolean)
RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    name text := format('%s_to_%s', parent, replace(upper, '-', ''));
    since text := CASE WHEN beginning THEN 'MINVALUE' ELSE quote_literal(lower) END;
BEGIN
    EXECUTE format('CREATE TABLE %I (LIKE %s INCLUDING ALL)', name, parent);
    IF NOT beginning THEN
        EXECUTE format('WITH stray AS (DELETE FROM %I WHERE %I >= %L AND %I < %L RETURNING *)
                        INSERT INTO %I SELECT * FROM stray', parent || '_rest', key, lower, key, upper, name);
    END IF;
    EXECUTE format('ALTER TABLE %s ATTACH PARTITION %I FOR VALUES FROM (%s) TO (%L)', parent, name, since, upper);
END
$$
"""

# Slices double with every sixteen that are there: whatever is kept, they are some dozens.
_LOG_AHEAD = """
CREATE OR REPLACE FUNCTION log_slices_ahead(slice bigint) RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    head bigint := (SELECT coalesce(max(position), 0) FROM log_head);
    last bigint := (SELECT max(s.upper::bigint) FROM slices_of('event_log') s);
    size bigint := slice << (SELECT least(count(*) / 16, 16)::integer FROM slices_of('event_log'));
    beginning boolean := last IS NULL AND NOT EXISTS (SELECT 1 FROM event_log);
    made integer := 0;
BEGIN
    -- Where events went to the rest, the next slice begins behind everything that may go there meanwhile.
    last := CASE WHEN beginning THEN head / slice * slice
                 WHEN last IS NULL OR last <= head + 1 THEN (head / slice + 2) * slice
                 ELSE last END;
    WHILE last < head + 2 * size LOOP
        PERFORM add_slice('event_log', 'position', last::text, (last + size)::text, beginning);
        last := last + size;
        beginning := false;
        made := made + 1;
    END LOOP;
    RETURN made;
END
$$
"""

_LOG_PAST = """
CREATE OR REPLACE FUNCTION log_is_past(upper bigint, keep_s double precision) RETURNS boolean LANGUAGE sql STABLE AS $$
    SELECT NOT EXISTS (
        SELECT 1 FROM log_head h LEFT JOIN event_log e ON e.partition = h.partition AND e.position = upper - 1
        WHERE h.position < upper - 1 OR e.created_at > now() - keep_s * interval '1 second'
    )
$$
"""

# The order of the locks: nobody subscribes, nobody uses the log, nobody rewinds; then look again, and drop.
_LOG_UPKEEP = f"""
CREATE OR REPLACE FUNCTION log_upkeep(
    keep_s double precision, slice bigint,
    OUT made integer, OUT dropped integer, OUT held_bytes bigint, OUT held_by text[]
) LANGUAGE plpgsql {_AS_OWNER} AS $$
DECLARE
    oldest regclass;
    bound bigint;
BEGIN
    made := 0; dropped := 0; held_bytes := 0; held_by := '{{}}';
    IF NOT pg_try_advisory_xact_lock(hashtext('log_upkeep')) THEN RETURN; END IF;
    made := log_slices_ahead(slice);
    DELETE FROM event_log_rest WHERE ctid = ANY (ARRAY(
        SELECT r.ctid FROM event_log_rest r JOIN log_head h USING (partition) WHERE r.position <= h.dropped LIMIT 10000
    ));
    SELECT s.slice, s.upper::bigint INTO oldest, bound FROM slices_of('event_log') s ORDER BY s.upper::bigint LIMIT 1;
    IF oldest IS NULL OR NOT log_is_past(bound, keep_s) THEN RETURN; END IF;
    IF EXISTS (SELECT 1 FROM subscriptions WHERE settled < bound - 1) THEN
        held_by := ARRAY(SELECT DISTINCT service FROM subscriptions WHERE settled < bound - 1 ORDER BY service);
        SELECT sum(pg_total_relation_size(s.slice)) INTO held_bytes FROM slices_of('event_log') s
        WHERE log_is_past(s.upper::bigint, keep_s);
        RETURN;
    END IF;
    PERFORM pg_advisory_xact_lock(hashtext('subscriptions'));
    LOCK TABLE ONLY event_log IN ACCESS EXCLUSIVE MODE;
    PERFORM 1 FROM subscriptions ORDER BY service, partition FOR UPDATE;
    IF EXISTS (SELECT 1 FROM subscriptions WHERE settled < bound - 1) THEN RETURN; END IF;
    EXECUTE format('DROP TABLE %s', oldest);
    UPDATE log_head SET dropped = greatest(log_head.dropped, bound - 1);
    UPDATE subscriptions SET origin = greatest(origin, bound - 1), rewound = greatest(rewound, bound - 1);
    dropped := 1;
EXCEPTION WHEN lock_not_available THEN
    made := 0; dropped := 0;
END
$$
"""  # noqa: S608 - words of our own

_FIRST_ID = """
CREATE OR REPLACE FUNCTION first_id(ms bigint) RETURNS uuid LANGUAGE sql IMMUTABLE AS $$
    SELECT (lpad(to_hex(ms), 12, '0') || repeat('0', 20))::uuid
$$
"""
_MS_OF = """
CREATE OR REPLACE FUNCTION ms_of(id text) RETURNS bigint LANGUAGE sql IMMUTABLE AS $$
    SELECT ('x0000' || left(replace(id, '-', ''), 12))::bit(64)::bigint
$$
"""

_LEDGER_AHEAD = """
CREATE OR REPLACE FUNCTION ledger_slices_ahead(slice_ms bigint) RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    present bigint := extract(epoch FROM now()) * 1000;
    last bigint := (SELECT max(ms_of(s.upper)) FROM slices_of('deliveries') s);
    beginning boolean := last IS NULL AND NOT EXISTS (SELECT 1 FROM deliveries);
    made integer := 0;
BEGIN
    -- Where deliveries went to the rest, the next slice begins later, when only what strayed has to be moved.
    last := CASE WHEN beginning THEN present / slice_ms * slice_ms
                 WHEN last IS NULL OR last <= present THEN (present / slice_ms + 1) * slice_ms
                 ELSE last END;
    WHILE last < present + 2 * slice_ms LOOP
        PERFORM add_slice('deliveries', 'event_id', first_id(last)::text, first_id(last + slice_ms)::text, beginning);
        last := last + slice_ms;
        beginning := false;
        made := made + 1;
    END LOOP;
    RETURN made;
END
$$
"""

# What the log may still send must stay known: by event id alone a delivery is recognised as a duplicate.
# The newest position of a slice stands for when its rows came: they come in that order.
_LEDGER_NEEDED = """
CREATE OR REPLACE FUNCTION ledger_slice_is_needed(
    slice regclass, keep_s double precision, partitions integer[], dropped bigint[]
) RETURNS boolean LANGUAGE plpgsql STABLE AS $$
DECLARE
    needed boolean;
BEGIN
    EXECUTE format('
        SELECT EXISTS (
            SELECT 1 FROM progress p LEFT JOIN unnest($1, $2) AS k (partition, dropped) USING (partition)
            CROSS JOIN LATERAL (
                SELECT position, received_at FROM %s d
                WHERE d.partition = p.partition AND d.position IS NOT NULL ORDER BY d.position DESC LIMIT 1
            ) AS newest
            WHERE newest.position > least(p.settled, coalesce(k.dropped, 0))
               OR newest.received_at > now() - $3 * interval ''1 second''
        )', slice) INTO needed USING partitions, dropped, keep_s;
    RETURN needed;
END
$$
"""
# The first condition in the words of the index `deliveries_unsettled`, or the whole slice would be read.
_OPEN_IN = """
CREATE OR REPLACE FUNCTION open_in(slice regclass) RETURNS bigint LANGUAGE plpgsql STABLE AS $$
DECLARE
    found bigint;
BEGIN
    EXECUTE format('SELECT count(*) FROM %s WHERE state NOT IN (''done'', ''ignored'') AND state <> ''discarded''',
                   slice) INTO found;
    RETURN found;
END
$$
"""

_LEDGER_UPKEEP = f"""
CREATE OR REPLACE FUNCTION ledger_upkeep(
    keep_s double precision, slice_ms bigint, partitions integer[], log_dropped bigint[],
    OUT made integer, OUT dropped integer, OUT held_bytes bigint, OUT held bigint
) LANGUAGE plpgsql {_AS_OWNER} AS $$
DECLARE
    oldest regclass;
    bound text;
BEGIN
    made := 0; dropped := 0; held_bytes := 0; held := 0;
    IF NOT pg_try_advisory_xact_lock(hashtext('ledger_upkeep')) THEN RETURN; END IF;
    made := ledger_slices_ahead(slice_ms);
    DELETE FROM deliveries_rest WHERE ctid = ANY (ARRAY(
        SELECT r.ctid FROM deliveries_rest r JOIN progress p USING (partition)
        WHERE r.position <= p.forgotten AND r.state IN ('done', 'ignored', 'discarded')
          AND r.received_at < now() - keep_s * interval '1 second' LIMIT 10000
    ));
    SELECT s.slice, s.upper INTO oldest, bound FROM slices_of('deliveries') s ORDER BY s.upper LIMIT 1;
    IF oldest IS NULL OR ms_of(bound) > (extract(epoch FROM now()) - keep_s) * 1000
       OR ledger_slice_is_needed(oldest, keep_s, partitions, log_dropped) THEN RETURN; END IF;
    held := open_in(oldest);
    IF held > 0 THEN
        held_bytes := pg_total_relation_size(oldest);
        RETURN;
    END IF;
    LOCK TABLE ONLY deliveries IN ACCESS EXCLUSIVE MODE;
    IF open_in(oldest) > 0 THEN RETURN; END IF;
    EXECUTE format('DROP TABLE %s', oldest);
    UPDATE progress p SET forgotten = greatest(p.forgotten, least(p.settled, k.dropped))
    FROM unnest(partitions, log_dropped) AS k (partition, dropped) WHERE p.partition = k.partition;
    dropped := 1;
EXCEPTION WHEN lock_not_available THEN
    made := 0; dropped := 0;
END
$$
"""  # noqa: S608 - words of our own


def _rest(parent: str) -> str:
    """Made only where it is missing: IF NOT EXISTS would lock the whole table to find out."""
    return f"""
    DO $$ BEGIN
        IF to_regclass('{parent}_rest') IS NULL THEN
            CREATE TABLE {parent}_rest PARTITION OF {parent} DEFAULT;
        END IF;
    END $$
    """


_LOG: Final = (_rest("event_log"), _NEEDS, _ADD, _LOG_AHEAD, _LOG_PAST, _LOG_UPKEEP)
_LEDGER: Final = (
    _rest("deliveries"),
    *(_NEEDS, _ADD, _FIRST_ID, _MS_OF, _LEDGER_AHEAD, _LEDGER_NEEDED, _OPEN_IN, _LEDGER_UPKEEP),
)


def log_by_position() -> dict[str, Any]:
    """What makes a `Table` the log's."""
    return _sliced("position", _LOG, f"SELECT log_slices_ahead({LOG_SLICE})")


def ledger_by_event_id() -> dict[str, Any]:
    """What makes a `Table` a ledger's."""
    return _sliced("event_id", _LEDGER, f"SELECT ledger_slices_ahead({LEDGER_SLICE_MS})")


def _sliced(key: str, statements: Sequence[str], ahead: str) -> dict[str, Any]:
    def complete(table: Table, connection: Connection, **_: object) -> None:  # noqa: ARG001 - as SQLAlchemy calls it
        for statement in statements:
            connection.exec_driver_sql(statement)

    return {
        "postgresql_partition_by": f"RANGE ({key})",
        "info": {COMPLETED_BY: (*statements, ahead)},
        "listeners": [("after_create", complete)],
    }
