"""The commands of `python -m deploy.local`: run, up, down, reset, status (and demo, in its own file)."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from deploy.local import credentials, databases, leftovers
from deploy.local.errors import PlatformError
from deploy.local.files import is_alive, prepare_folder, read_pids
from deploy.local.launcher import Launcher
from deploy.local.lock import RunLock
from deploy.local.postgres import data_folder
from deploy.local.process import ROOT, http_ready
from deploy.local.settings import SERVICES, Settings
from deploy.local.table import summary

STOP_S = 15.0
READY = "ready"
FOLDERS = ("postgres", "postgres.new", "redis", "payments", "mail", "logs")
FILES = ("env", "pids.json", "secrets.json", "lock")


def run(settings: Settings, report: int | None = None) -> None:
    """Start everything and stay; `report` is a file descriptor on which `up` waits for the outcome."""
    began = time.monotonic()

    def when_ready() -> None:
        if report is None:
            _say_ready(settings, time.monotonic() - began)
            _say("Ctrl-C stops everything.")
        else:
            os.write(report, READY.encode())
            os.close(report)

    _say(f"Starting Orderstream in {settings.run_dir} …")
    asyncio.run(_launch(settings, when_ready))
    _say("Stopped.")


async def _launch(settings: Settings, when_ready: Callable[[], None]) -> None:
    await Launcher(settings, _say).run(when_ready)


def up(settings: Settings) -> None:
    """Start everything in a session of its own; return when it is ready, raise when it cannot be."""
    prepare_folder(settings.run_dir)
    began = time.monotonic()
    if (settings.run_dir / "env").exists() and RunLock(settings.run_dir).holder():
        _say("It is running already.")
    else:
        _start_detached(settings)
    _say_ready(settings, time.monotonic() - began)
    _say("make down stops it.")


def _start_detached(settings: Settings) -> None:
    reader, writer = os.pipe()
    command = [sys.executable, "-m", "deploy.local", "run", "--report", str(writer)]
    with settings.log("launcher").open("ab") as log, os.fdopen(reader) as outcome:
        child = subprocess.Popen(
            command,
            cwd=Path.cwd(),
            env={**os.environ, "PYTHONSAFEPATH": "1", "PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=(writer,),
            start_new_session=True,
        )
        os.close(writer)
        try:
            said = outcome.read()
        except KeyboardInterrupt:
            child.send_signal(signal.SIGTERM)
            child.wait()
            raise
    if said != READY:
        child.wait()
        raise PlatformError(said or f"The launcher ended without a word: see {settings.log('launcher')}.")


def down(settings: Settings) -> None:
    """Stop everything; state and data stay."""
    holder = RunLock(settings.run_dir).holder() if settings.run_dir.exists() else None
    if holder is None:
        found = leftovers.clean(settings.run_dir)
        _say("Stopped what an earlier run had left." if found else f"Nothing runs in {settings.run_dir}.")
        return
    began = time.monotonic()
    _end(psutil.Process(holder))
    leftovers.clean(settings.run_dir)
    _say(f"Stopped after {time.monotonic() - began:.1f} s.")


def _end(launcher: psutil.Process) -> None:
    try:
        launcher.terminate()
        launcher.wait(STOP_S)
    except psutil.NoSuchProcess:
        return
    except psutil.TimeoutExpired:
        launcher.kill()


def reset(settings: Settings) -> None:
    """Stop everything and delete its data, on a Postgres of your own only the databases made here."""
    down(settings)
    if settings.postgres_url:
        dropped = asyncio.run(databases.drop(settings.postgres_url))
        _say(f"Dropped the databases {', '.join(dropped)}." if dropped else "No databases of ours to drop.")
    if settings.run_dir.exists():
        shutil.rmtree(data_folder(settings.run_dir / "postgres"), ignore_errors=True)
        _delete(settings.run_dir)
        _say(f"Deleted the data in {settings.run_dir}.")


def _delete(run_dir: Path) -> None:
    """What we put there, and nothing else: RUN_DIR may have been set to a folder that holds more."""
    for name in FOLDERS:
        shutil.rmtree(run_dir / name, ignore_errors=True)
    for name in FILES:
        (run_dir / name).unlink(missing_ok=True)
    if not any(run_dir.iterdir()):
        run_dir.rmdir()


def status(settings: Settings) -> None:
    """One line per process."""
    pids = read_pids(settings.run_dir)
    if not pids:
        raise PlatformError(f"Nothing runs in {settings.run_dir}: make up starts it.")
    for name, pid in pids.items():
        state = "running" if is_alive(pid) else "down"
        if name in (*SERVICES, "payments", "mail") and state == "running":
            state = "ready" if asyncio.run(http_ready(settings.port(name))) else "not ready"
        _say(f"  {name:<10} {state:<10} process {pid:<8} {settings.log(name)}")


def _say_ready(settings: Settings, seconds: float) -> None:
    _say(f"Orderstream is ready after {seconds:.1f} s.\n")
    _say(summary(settings, credentials.load(settings.run_dir)))


def _say(text: str) -> None:
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # Whoever listened has gone (`make up | head`); what we do goes on without them.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
