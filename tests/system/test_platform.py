"""The local platform as people use it: `up`, `down` and what happens in between, with real processes."""

import asyncio
import os
import re
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from deploy.local.ports import is_free
from deploy.local.settings import PORTS
from tests.support.platform import NAMES, ROOT, URLS, Platform, all_ready, fetch, free_base, until

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """One run folder that the tests of this file share."""
    ours = Platform(tmp_path_factory.mktemp("platform"), free_base())
    yield ours
    ours.do("reset")


@pytest.fixture
def platform(folder: Platform) -> Platform:
    """The running platform, started again if the test before stopped it."""
    if not (folder.run_dir / "env").exists():
        started = folder.do("up")
        assert started.returncode == 0, started.stdout + started.stderr
    return folder


def test_up_tells_where_everything_is_and_with_which_key(platform: Platform) -> None:
    again = platform.do("up")

    assert again.returncode == 0
    assert "running already" in again.stdout
    assert f"http://127.0.0.1:{platform.port_base}" in again.stdout
    assert platform.env["API_KEY"] in again.stdout


def test_the_env_file_has_every_address_and_key_and_is_private(platform: Platform) -> None:
    env = platform.env

    assert set(env) == {*(f"{name}_URL" for name in URLS), "API_KEY", "OPS_KEY"}
    assert env["WAREHOUSE_URL"] == f"http://127.0.0.1:{platform.port_base + 3}"
    for name in ("env", "secrets.json", "pids.json"):
        assert stat.S_IMODE((platform.run_dir / name).stat().st_mode) == 0o600


def test_the_shell_reads_the_env_file(platform: Platform) -> None:
    script = f'. "{platform.run_dir}/env" && printf %s "$POSTGRES_URL"'

    said = subprocess.run(["/bin/sh", "-c", script], capture_output=True, text=True, check=True).stdout

    assert said == platform.env["POSTGRES_URL"]


def test_the_pid_file_names_the_real_processes(platform: Platform) -> None:
    pids = platform.pids

    commands = {name: " ".join(psutil.Process(pid).cmdline()) for name, pid in pids.items()}

    assert set(pids) == NAMES
    assert commands["checkout"].endswith("-m services.checkout")
    assert commands["mail"].endswith("-m deploy.local.mail")
    assert "/postgres -D" in commands["postgres"]
    assert "valkey-server" in commands["redis"]


async def test_each_service_has_a_database_in_which_it_may_only_work_with_rows(platform: Platform) -> None:
    query = (
        "SELECT d.datname, pg_get_userbyid(d.datdba), has_database_privilege(r.rolname, d.datname, 'CREATE') "
        "FROM pg_database d JOIN pg_roles r ON r.rolname = d.datname AND NOT r.rolsuper ORDER BY 1"
    )

    rows = await fetch(platform.env["POSTGRES_URL"], query)

    services = ("analytics", "checkout", "email", "warehouse")
    assert rows == [(name, f"{name}_migrator", False) for name in services]


def test_a_second_launcher_on_the_folder_is_told_so_in_one_line(platform: Platform) -> None:
    second = platform.do("run")

    assert second.returncode == 1
    assert re.fullmatch(r"A launcher already runs in .*make down.*\n", second.stderr)


def test_a_taken_port_is_named_with_its_holder(platform: Platform, tmp_path: Path) -> None:
    neighbour = Platform(tmp_path / "run", platform.port_base)

    refused = neighbour.do("up")

    pid = platform.pids["checkout"]
    assert refused.returncode == 1
    assert f"Port {platform.port_base} (checkout) is taken by process {pid}" in refused.stderr
    assert "services.checkout" in refused.stderr
    assert "PORT_BASE=" in refused.stderr
    assert refused.stderr.count("\n") == 1


@pytest.mark.parametrize("name", ["email", "redis", "postgres"])
async def test_what_is_killed_is_started_again(platform: Platform, name: str) -> None:
    before = platform.pids[name]

    os.kill(before, signal.SIGKILL)

    await until(lambda: _is_another(platform, name, before))
    await until(lambda: all_ready(platform))


async def test_two_copies_run_side_by_side(platform: Platform, tmp_path: Path) -> None:
    neighbour = Platform(tmp_path / "run", free_base())
    try:
        started = neighbour.do("up")

        assert started.returncode == 0, started.stderr
        assert await all_ready(neighbour)
        assert await all_ready(platform)
        assert neighbour.env["API_KEY"] != platform.env["API_KEY"]
    finally:
        stopped = neighbour.do("reset")

    assert stopped.returncode == 0
    assert neighbour.processes() == []
    assert not neighbour.run_dir.exists()
    assert await all_ready(platform)


async def test_a_killed_launcher_leaves_nothing_in_the_way_of_the_next(platform: Platform) -> None:
    key, before = platform.env["API_KEY"], platform.pids

    os.kill(platform.launcher, signal.SIGKILL)
    again = platform.do("up")

    assert again.returncode == 0, again.stderr
    assert await all_ready(platform)
    assert platform.env["API_KEY"] == key
    assert not {process.pid for process in platform.processes()} & set(before.values())


def test_down_leaves_no_process_and_keeps_the_data(platform: Platform) -> None:
    stopped = platform.do("down")

    assert stopped.returncode == 0
    assert float(re.findall(r"after ([\d.]+) s", stopped.stdout)[0]) < 10
    assert platform.processes() == []
    assert all(is_free(platform.port_base + offset) for offset in PORTS.values())
    assert not (platform.run_dir / "env").exists()
    assert (platform.run_dir / "postgres" / "PG_VERSION").exists()


@pytest.mark.alone
async def test_ctrl_c_ends_what_runs_in_the_foreground(folder: Platform) -> None:
    folder.do("down")
    command = [sys.executable, "-m", "deploy.local", "run"]
    foreground = await asyncio.create_subprocess_exec(
        *command, cwd=ROOT, env=folder.environment(), stdout=subprocess.PIPE, start_new_session=True
    )
    await until(lambda: _exists(folder.run_dir / "env"), timeout_s=100)

    # As a terminal does it: to the whole foreground process group.
    os.killpg(foreground.pid, signal.SIGINT)
    async with asyncio.timeout(10):
        said, _ = await foreground.communicate()

    assert foreground.returncode == 0
    assert b"Ctrl-C stops everything" in said
    assert said.endswith(b"Stopped.\n")
    assert folder.processes() == []


def test_the_demo_says_so_when_nothing_runs(tmp_path: Path) -> None:
    shown = Platform(tmp_path / "run", free_base()).do("demo")

    assert shown.returncode == 1
    assert "make up" in shown.stderr


@pytest.mark.parametrize("base", ["80", "99999", "http"])
def test_a_port_base_that_cannot_be_is_refused_in_one_line(tmp_path: Path, base: str) -> None:
    refused = Platform(tmp_path / "run", 0).do("up", PORT_BASE=base)

    assert refused.returncode == 1
    assert re.fullmatch(r"PORT_BASE is .*: set it to a number from 1024 to \d+\.\n", refused.stderr)


def test_a_switch_that_is_neither_on_nor_off_is_refused_in_one_line(tmp_path: Path) -> None:
    refused = Platform(tmp_path / "run", free_base()).do("up", REDIS_APPENDONLY="1")

    assert refused.returncode == 1
    assert refused.stderr == "REDIS_APPENDONLY is '1': set it to yes or no.\n"


def test_a_folder_that_cannot_be_written_to_is_named_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    refused = Platform(tmp_path / "file" / "run", free_base()).do("up")

    assert refused.returncode == 1
    assert re.fullmatch(r"Cannot write to .*: set RUN_DIR to another folder\.\n", refused.stderr)


async def _exists(path: Path) -> bool:
    return path.exists()  # noqa: ASYNC240 - one look at a local file


async def _is_another(platform: Platform, name: str, pid: int) -> bool:
    return platform.pids[name] != pid
