"""Starts the whole platform in order, keeps it running, and stops it in the opposite order."""

import asyncio
import contextlib
import shlex
import signal
from collections.abc import Callable

from deploy.local import credentials, databases, leftovers, ports
from deploy.local.errors import PlatformError
from deploy.local.files import PidFile, prepare_folder, write
from deploy.local.lock import RunLock
from deploy.local.postgres import Postgres, data_folder
from deploy.local.process import run
from deploy.local.programs import Programs
from deploy.local.settings import SERVICES, Settings
from deploy.local.supervisor import Supervisor
from deploy.local.valkey import Valkey

PREPARE_S = 60.0
# Together less than the ten seconds in which Ctrl-C has to end everything.
SERVICES_GRACE_S = 6.0
SANDBOXES_GRACE_S = 1.0
REDIS_GRACE_S = 1.0
POSTGRES_GRACE_S = 1.5

Say = Callable[[str], None]
MakePrograms = Callable[[Settings, credentials.Credentials, str, str], Programs]


class Launcher:
    """One platform in one run folder; whoever wants its programs otherwise makes them."""

    def __init__(self, settings: Settings, say: Say, make_programs: MakePrograms = Programs) -> None:
        self._settings = settings
        self._say = say
        self._make_programs = make_programs
        self._pids = PidFile(settings.run_dir)
        self._supervisor = Supervisor(self._pids, say)
        self._stopping = asyncio.Event()

    async def run(self, when_ready: Callable[[], None]) -> None:
        """Start, tell `when_ready`, and stay until a signal asks to stop."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self.stop)
        prepare_folder(self._settings.run_dir)
        lock = RunLock(self._settings.run_dir)
        if not lock.acquire():
            message = f"A launcher already runs in {self._settings.run_dir}: stop it with make down first."
            raise PlatformError(message)
        try:
            await self._run(when_ready)
        finally:
            await self._stop()
            lock.release()

    def stop(self) -> None:
        """Ask `run` to stop everything and return; who asks again has everything killed."""
        if self._stopping.is_set():
            self._say("Killing everything.")
            self._supervisor.kill()
            return
        self._say("Stopping …")
        self._stopping.set()

    async def _run(self, when_ready: Callable[[], None]) -> None:
        starting = asyncio.create_task(self._start())
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                starting.result()
                when_ready()
                await stopping
        finally:
            starting.cancel()
            stopping.cancel()
            await asyncio.gather(starting, stopping, return_exceptions=True)

    async def _start(self) -> None:
        self._forget_last_run()
        ports.require_free(self._settings)
        keys = credentials.load(self._settings.run_dir)
        postgres, valkey = self._servers(keys)
        postgres_url = self._settings.postgres_url or postgres.url
        redis_url = self._settings.redis_url or valkey.url
        programs = self._make_programs(self._settings, keys, postgres_url, redis_url)
        try:
            async with asyncio.TaskGroup() as group:
                redis = group.create_task(self._start_redis(valkey))
                sandboxes = group.create_task(self._start_sandboxes(programs))
                provided = self._provide_databases(postgres, postgres_url, keys)
                await run(programs.prepare(), PREPARE_S, when=provided)
                await asyncio.gather(redis, sandboxes)
                for name in SERVICES:
                    group.create_task(self._supervisor.start(programs.service(name)))
        except BaseExceptionGroup as errors:
            # One cause is enough to act on; the others mostly follow from it.
            raise _first(errors) from None
        self._write_environment(keys, postgres_url, redis_url)

    def _forget_last_run(self) -> None:
        for process in leftovers.clean(self._settings.run_dir):
            self._say(f"Stopped {process}, left over from an earlier run.")
        (self._settings.run_dir / "env").unlink(missing_ok=True)
        self._pids.remove()

    def _servers(self, keys: credentials.Credentials) -> tuple[Postgres, Valkey]:
        settings, marker = self._settings, str(self._settings.run_dir)
        postgres = Postgres(
            folder=data_folder(settings.run_dir / "postgres"),
            port=settings.port("postgres"),
            password=keys.superuser_password,
            log=settings.log("postgres"),
            marker=marker,
        )
        valkey = Valkey(
            folder=settings.run_dir / "redis",
            port=settings.port("redis"),
            log=settings.log("redis"),
            durable=settings.redis_appendonly,
            marker=marker,
        )
        return postgres, valkey

    async def _provide_databases(self, server: Postgres, url: str, keys: credentials.Credentials) -> None:
        if "postgres" in self._settings.own:
            await server.prepare()
            await self._supervisor.start(server.program())
        await databases.provide(url, keys.role_passwords)

    async def _start_redis(self, server: Valkey) -> None:
        if "redis" in self._settings.own:
            await server.prepare()
            await self._supervisor.start(server.program())

    async def _start_sandboxes(self, programs: Programs) -> None:
        wanted = [
            program()
            for name, program in (("payments", programs.payments), ("mail", programs.mail))
            if name in self._settings.own
        ]
        await asyncio.gather(*(self._supervisor.start(program) for program in wanted))

    def _write_environment(self, keys: credentials.Credentials, postgres_url: str, redis_url: str) -> None:
        settings = self._settings
        values = {f"{name.upper()}_URL": settings.url(name) for name in SERVICES}
        values["PAYMENTS_URL"] = settings.payments_url or settings.url("payments")
        values["INBOX_URL"] = "" if settings.smtp_url else settings.url("mail")
        values |= {"POSTGRES_URL": postgres_url, "REDIS_URL": redis_url}
        values |= {"API_KEY": keys.api_key, "OPS_KEY": keys.ops_key}
        lines = [f"{name}={shlex.quote(value)}\n" for name, value in values.items()]
        write(settings.run_dir / "env", "".join(lines))

    async def _stop(self) -> None:
        """The services first, while what they need to finish their work is still there; the database last."""
        with contextlib.suppress(FileNotFoundError):
            (self._settings.run_dir / "env").unlink()
        await self._supervisor.stop(SERVICES, SERVICES_GRACE_S)
        await self._supervisor.stop(("payments", "mail"), SANDBOXES_GRACE_S)
        await self._supervisor.stop(("redis",), REDIS_GRACE_S)
        await self._supervisor.stop(("postgres",), POSTGRES_GRACE_S)
        self._pids.remove()


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
