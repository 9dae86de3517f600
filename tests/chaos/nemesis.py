"""Does what the schedule says, and puts everything right again at the end."""

import asyncio
import random
import resource
import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import asyncpg
import httpx
import psutil

from deploy.local.settings import SERVICES
from tests.chaos.links import Links
from tests.chaos.schedule import Fault
from tests.chaos.servers import PostgresServer, RedisServer
from tests.support.platform import Platform
from tests.support.proxy import Mode, Proxy

PATIENCE_S = 3.0  # for a server that another fault has taken away just now
DISCONNECT_EVERY_S = 0.2
SWIZZLE_STEP_S = 0.3
FULL_BYTES = 1  # whatever needs memory is refused
TOO_FEW_FILES = 12  # as many as Python has open before it does anything
NOT_NOW = (OSError, httpx.HTTPError, psutil.Error, asyncpg.PostgresError, asyncpg.InterfaceError)


@dataclass
class Nemesis:
    """`missed` are the faults that could not be done, mostly because another one stood in the way."""

    platform: Platform
    links: Links
    redis: RedisServer
    postgres: PostgresServer
    sandboxes: Mapping[str, str]  # where faults are set, by target
    seed: int
    missed: list[str] = field(default_factory=list)
    late_s: float = 0.0  # the most that a fault came later than it should have: this machine is too busy
    _frozen: set[psutil.Process] = field(default_factory=set)
    _files: dict[psutil.Process, tuple[int, int]] = field(default_factory=dict)

    async def run(self, faults: Sequence[Fault]) -> None:
        """Return when the last one is over."""
        time = asyncio.get_running_loop().time
        began = time()
        async with asyncio.TaskGroup() as group:
            for fault in faults:
                await asyncio.sleep(max(0.0, began + fault.at_s - time()))
                self.late_s = max(self.late_s, time() - began - fault.at_s)
                group.create_task(self._do(fault))

    async def heal(self) -> None:
        """Everything works again; what was cut off has to find its way back by itself."""
        for process in list(self._frozen):
            self._thaw(process)
        for process in list(self._files):
            self._give_files(process)
        for proxy in self.links.proxies.values():
            await self._mend(proxy)
        await self._insist(lambda: self.redis.limit_memory(0))
        for target in self.sandboxes:
            await self._insist(lambda target=target: self._set_faults(target, {}))  # type: ignore[misc]
        for role in SERVICES:
            await self._insist(lambda role=role: self.postgres.limit_connections(role, -1))  # type: ignore[misc]

    async def _do(self, fault: Fault) -> None:
        deadline = asyncio.get_running_loop().time() + PATIENCE_S
        while True:
            try:
                await ACTIONS[fault.kind](self, fault)
                return
            except NOT_NOW as error:
                if asyncio.get_running_loop().time() > deadline:
                    self.missed.append(f"{fault}: {error!r}")
                    return
                await asyncio.sleep(0.1)

    @staticmethod
    async def _insist(action: Callable[[], Awaitable[None]]) -> None:
        async with asyncio.timeout(60):
            while True:
                try:
                    await action()
                    return
                except NOT_NOW:
                    await asyncio.sleep(0.2)

    async def _freeze(self, process: psutil.Process, for_s: float) -> None:
        self._frozen.add(process)
        process.suspend()
        try:
            await asyncio.sleep(for_s)
        finally:
            self._thaw(process)

    def _thaw(self, process: psutil.Process) -> None:
        self._frozen.discard(process)
        with suppress(psutil.NoSuchProcess):  # somebody killed it meanwhile
            process.resume()

    async def _few_files(self, fault: Fault) -> None:
        process = self.platform.serving(fault.target)
        before = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
        self._files[process] = before
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (TOO_FEW_FILES, before[1]))
        try:
            await asyncio.sleep(fault.for_s)
        finally:
            self._give_files(process)

    def _give_files(self, process: psutil.Process) -> None:
        before = self._files.pop(process, None)
        if before is not None and process.is_running():
            with suppress(ProcessLookupError):
                resource.prlimit(process.pid, resource.RLIMIT_NOFILE, before)

    async def _freeze_backend(self, fault: Fault) -> None:
        dice = random.Random(f"{self.seed} {fault.at_s}")  # noqa: S311 - which one, as far as there are as many
        process = await self.postgres.backend(fault.target, dice)
        if process is not None:
            await self._freeze(process, fault.for_s)

    async def _few_connections(self, fault: Fault) -> None:
        await self.postgres.limit_connections(fault.target, fault.details["limit"])
        try:
            await asyncio.sleep(fault.for_s)
        finally:
            await self._insist(lambda: self.postgres.limit_connections(fault.target, -1))

    async def _disconnect(self, fault: Fault) -> None:
        end = asyncio.get_running_loop().time() + fault.for_s
        while asyncio.get_running_loop().time() < end:
            with suppress(*NOT_NOW):
                await self.redis.disconnect()
            await asyncio.sleep(DISCONNECT_EVERY_S)

    async def _full(self, fault: Fault) -> None:
        await self.redis.limit_memory(FULL_BYTES)
        try:
            await asyncio.sleep(fault.for_s)
        finally:
            await self._insist(lambda: self.redis.limit_memory(0))

    async def _sandbox(self, fault: Fault) -> None:
        await self._set_faults(fault.target, {**fault.details["faults"], "for_s": fault.for_s})

    async def _set_faults(self, target: str, faults: Mapping[str, Any]) -> None:
        async with httpx.AsyncClient(timeout=2, trust_env=False) as client:
            answer = await client.post(self.sandboxes[target], json=dict(faults))
            answer.raise_for_status()

    async def _link(self, fault: Fault) -> None:
        proxy = self.links.proxies[fault.target]
        await self._spoil(proxy, fault.kind, fault.details)
        if fault.for_s:
            await asyncio.sleep(fault.for_s)
            await self._mend(proxy)

    async def _spoil(self, proxy: Proxy, how: str, details: Mapping[str, Any]) -> None:  # noqa: C901 - a list of them
        match how:
            case "refuse":
                await proxy.refuse()
                proxy.reset()
            case "reset":
                proxy.reset()
            case "blackhole" | "deaf":
                proxy.mode = Mode(how)
            case "latency":
                proxy.latency_s, proxy.jitter_s = details["latency_s"], details["jitter_s"]
            case "bandwidth":
                proxy.bytes_per_s = details["bytes_per_s"]
            case "slice":
                proxy.slice_bytes = 1
            case "limit":
                proxy.limit_bytes = round(details["bytes"])
            case "half_close":
                proxy.half_close()
            case "drop_reply":
                proxy.drop_reply(details["match"].encode(), nth=details["nth"])
            case _:
                raise ValueError(how)

    async def _mend(self, proxy: Proxy) -> None:
        lost_bytes = proxy.mode is not Mode.OK
        proxy.calm()
        if lost_bytes:
            proxy.reset()
        await proxy.refuse()
        await proxy.accept()

    async def _swizzle(self, fault: Fault) -> None:
        cut, restore = fault.details["cut"], fault.details["restore"]
        for name in cut:
            await self._spoil(self.links.proxies[name], fault.details["how"], {})
            await asyncio.sleep(SWIZZLE_STEP_S)
        await asyncio.sleep(fault.for_s)
        for name in restore:
            await self._mend(self.links.proxies[name])
            await asyncio.sleep(SWIZZLE_STEP_S)

    async def _kill(self, fault: Fault) -> None:
        self.platform.kill(fault.target)

    async def _crash(self, fault: Fault) -> None:
        self.platform.serving(fault.target).send_signal(signal.SIGSEGV)

    async def _terminate(self, fault: Fault) -> None:
        self.platform.kill(fault.target, signal.SIGTERM)

    async def _freeze_process(self, fault: Fault) -> None:
        await self._freeze(self.platform.serving(fault.target), fault.for_s)

    async def _restart_empty(self, _fault: Fault) -> None:
        self.redis.restart_empty()

    async def _cut_tail(self, fault: Fault) -> None:
        self.redis.cut_tail(fault.details["bytes"])

    async def _immediate_stop(self, _fault: Fault) -> None:
        self.postgres.immediate_stop()


Action = Callable[[Nemesis, Fault], Awaitable[None]]
LINK_KINDS = (
    "refuse", "reset", "blackhole", "deaf", "latency", "bandwidth", "slice", "limit", "half_close", "drop_reply"
)  # fmt: skip
ACTIONS: Mapping[str, Action] = {
    "kill": Nemesis._kill,
    "crash": Nemesis._crash,
    "freeze": Nemesis._freeze_process,
    "terminate": Nemesis._terminate,
    "few_files": Nemesis._few_files,
    "flush": lambda nemesis, _: nemesis.redis.flush(),
    "restart_empty": Nemesis._restart_empty,
    "cut_tail": Nemesis._cut_tail,
    "trim": lambda nemesis, fault: nemesis.redis.trim(fault.target),
    "delete_entries": lambda nemesis, fault: nemesis.redis.delete_entries(fault.target, fault.details["count"]),
    "destroy_group": lambda nemesis, fault: nemesis.redis.destroy_group(fault.target),
    "delete_consumer": lambda nemesis, fault: nemesis.redis.delete_consumer(fault.target),
    "replace_key": lambda nemesis, fault: nemesis.redis.replace_key(fault.target),
    "forget_settled": lambda nemesis, fault: nemesis.redis.forget_settled(fault.target),
    "lie_settled": lambda nemesis, fault: nemesis.redis.lie_settled(fault.target, fault.details["value"]),
    "disconnect": Nemesis._disconnect,
    "pause": lambda nemesis, fault: nemesis.redis.pause(fault.for_s),
    "full": Nemesis._full,
    "immediate_stop": Nemesis._immediate_stop,
    "end_backends": lambda nemesis, fault: nemesis.postgres.end_backends(fault.target, fault.details["share"]),
    "freeze_backend": Nemesis._freeze_backend,
    "few_connections": Nemesis._few_connections,
    **dict.fromkeys(LINK_KINDS, Nemesis._link),
    "provider": Nemesis._sandbox,
    "slow_provider": Nemesis._sandbox,
    "declines": Nemesis._sandbox,
    "mail": Nemesis._sandbox,
    "swizzle": Nemesis._swizzle,
}
