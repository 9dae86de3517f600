"""The same tests over every kind of Redis and Postgres that is supported, one after the other, and a table of them."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import monotonic
from xml.etree import ElementTree as ET

from rich.console import Console
from rich.table import Table

from deploy.local.errors import PlatformError
from tests.matrix import oldest
from tests.support import pgbouncer, topologies
from tests.support.absent import Absent

ROOT = Path(__file__).resolve().parents[2]
BUS = "tests/integration/bus"
CHECKOUT = "tests/integration/checkout"
SENTINEL = "tests/matrix/test_sentinel.py"
CLUSTER = "tests/matrix/test_cluster.py"
TEST_TIMEOUT_S = 600  # the servers are many, and the machine may be small
VERSION = re.compile(r"v=(\S+)|PgBouncer (\S+)")


@dataclass(frozen=True)
class Row:
    """One kind of server, and what has to pass on it."""

    kind: str
    binary: Callable[[], Path]
    environment: Mapping[str, str]
    tests: Sequence[str]
    touching: Sequence[str] = ()  # the fixtures that it is about; tests without them pass as they do elsewhere


@dataclass(frozen=True)
class Outcome:
    """What became of a row. `complaint` says why nobody could try, or what went wrong besides tests."""

    version: str = ""
    passed: int = 0
    failed: int = 0
    seconds: float = 0.0
    resumed_s: float = (
        0.0  # how long it took at the most, after a fault was over or noticed, to catch up with the events
    )
    complaint: str = ""
    absent: bool = False


def _redis(kind: str, *more: str) -> Row:
    make = topologies.make_of(kind)
    binary = oldest.binary if make == "redis-6.2" else partial(topologies.binary, make)
    return Row(kind, binary, {"TEST_REDIS": kind}, (BUS, *more), ("redis_topology", "server_side") if more else ())


ROWS = (
    _redis("valkey"),
    _redis("redis-6.2"),
    _redis("redis-7.0"),
    _redis("sentinel", SENTINEL),
    _redis("sentinel:redis-7.0", SENTINEL),
    _redis("cluster", CLUSTER),
    _redis("cluster:redis-6.2", CLUSTER),
    Row(
        "pgbouncer",
        pgbouncer.binary,
        {"TEST_POSTGRES": "pgbouncer"},
        (BUS, CHECKOUT, "tests/matrix/test_pgbouncer.py"),
        ("pgbouncer",),
    ),
)


def run(row: Row, words: Sequence[str]) -> Outcome:
    """Run its tests; what they say goes to the terminal."""
    try:
        version = _version(row.binary())
    except (Absent, PlatformError) as error:
        return Outcome(complaint=str(error), absent=True)
    with tempfile.NamedTemporaryFile(suffix=".xml") as report:
        # xunit1 is the family of reports that has room for what a test measured.
        settings = ("--override-ini", f"timeout={TEST_TIMEOUT_S}", "--override-ini", "junit_family=xunit1")
        touching = ("--touching", *row.touching) if row.touching else ()
        options = ("-q", "-m", "not alone", "-p", "tests.matrix.touching", *touching, *settings)
        command = (sys.executable, "-m", "pytest", *row.tests, *options, "--junitxml", report.name, *words)
        began = monotonic()
        code = subprocess.run(command, env={**os.environ, **row.environment}, cwd=ROOT, check=False).returncode
        return _count(Path(report.name), version, code, monotonic() - began)


def _count(report: Path, version: str, code: int, seconds: float) -> Outcome:
    try:
        root = ET.parse(report).getroot()  # noqa: S314 - pytest has just written it
        suites = root.iter("testsuite")
        totals = [(int(s.get("tests", 0)), int(s.get("failures", 0)) + int(s.get("errors", 0))) for s in suites]
    except ET.ParseError:
        return Outcome(version, failed=1, seconds=seconds, complaint=f"pytest ended with {code} and no report")
    tests, failed = (sum(column) for column in zip(*totals, strict=True))
    # A run that ends otherwise than by tests which pass or fail has failed too, whatever was counted.
    complaint = "" if code in {0, 1} else f"pytest ended with {code}"
    resumed = [float(one.get("value", 0)) for one in root.iter("property") if one.get("name") == "resumed_s"]
    return Outcome(version, tests - failed, failed or int(code != 0), seconds, max(resumed, default=0.0), complaint)


def _version(binary: Path) -> str:
    said = subprocess.run((binary, "--version"), capture_output=True, text=True, check=True).stdout
    found = VERSION.search(said)
    return (found[1] or found[2]) if found else said.strip()


def show(outcomes: Mapping[str, Outcome]) -> None:
    """Print the table, what else there is to say, and how many rows nobody could try."""
    table = Table("kind", "version", "passed", "failed", "seconds", "resumed after")
    for kind, one in outcomes.items():
        figures = ("-", "-", "-") if one.absent else (str(one.passed), str(one.failed), f"{one.seconds:.0f}")
        resumed = f"{one.resumed_s:.1f} s" if one.resumed_s else ""
        table.add_row(kind, one.version, *figures, resumed)
    console = Console()
    console.print(table)
    for kind, one in outcomes.items():
        if one.complaint:
            console.print(f"{kind}: {one.complaint}", soft_wrap=True)
    absent = sum(one.absent for one in outcomes.values())
    console.print(f"{len(outcomes) - absent} of {len(outcomes)} kinds were tried, {absent} are absent.")


def main() -> int:
    """1 when a test failed or a kind that was asked for is absent; 0 also when others of all kinds are absent."""
    parser = argparse.ArgumentParser(prog="python -m tests.matrix", description=__doc__)
    kinds = {row.kind: row for row in ROWS}
    parser.add_argument("kinds", nargs="*", metavar="kind", help=f"only these: {', '.join(kinds)}")
    parser.add_argument("-k", dest="expression", help="only tests that pytest selects by this expression")
    arguments = parser.parse_args()
    if unknown := set(arguments.kinds) - kinds.keys():
        parser.error(f"no such kind: {', '.join(sorted(unknown))}")
    words = ("-k", arguments.expression) if arguments.expression else ()
    outcomes = {kind: run(kinds[kind], words) for kind in arguments.kinds or kinds}
    show(outcomes)
    return int(any(one.failed or (one.absent and kind in arguments.kinds) for kind, one in outcomes.items()))


if __name__ == "__main__":
    sys.exit(main())
