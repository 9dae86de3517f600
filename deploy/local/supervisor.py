"""Keeps programs running: starts them, starts them again with back-off when they die, stops them in order."""

import asyncio
import signal
from collections.abc import Callable, Iterable

from deploy.local.errors import PlatformError
from deploy.local.files import PidFile
from deploy.local.process import Process, Program, describe

READY_S = 60.0
FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 5.0
HEALTHY_S = 30.0  # after so long without a death, the next one counts as the first


class Supervisor:
    """Knows every child process. `say` tells the person at the terminal what changed."""

    def __init__(self, pids: PidFile, say: Callable[[str], None]) -> None:
        self._pids = pids
        self._say = say
        self._processes: dict[str, Process] = {}
        self._keepers: dict[str, asyncio.Task[None]] = {}

    async def start(self, program: Program) -> None:
        """Return when it is ready; raise when it does not get there. From then on it is kept alive."""
        process = await self._start(program)
        await process.wait_ready(READY_S)
        self._keepers[program.name] = asyncio.create_task(self._keep(process), name=program.name)

    async def stop(self, names: Iterable[str], grace_s: float) -> None:
        """Stop these together; those that take longer than `grace_s` are killed."""
        wanted = set(names)
        for name in wanted & self._keepers.keys():
            self._keepers.pop(name).cancel()
        processes = [self._processes[name] for name in wanted & self._processes.keys()]
        await asyncio.gather(*(process.stop(grace_s) for process in processes))

    def kill(self) -> None:
        """Everything, at once."""
        for keeper in self._keepers.values():
            keeper.cancel()
        for process in self._processes.values():
            process.send(signal.SIGKILL)

    async def _start(self, program: Program) -> Process:
        process = await Process.start(program)
        self._processes[program.name] = process
        self._pids.record(program.name, process.pid)
        return process

    async def _keep(self, process: Process) -> None:
        name, pause = process.program.name, FIRST_PAUSE_S
        clock = asyncio.get_running_loop().time
        while True:
            since = clock()
            code = await process.exited()
            pause = FIRST_PAUSE_S if clock() - since > HEALTHY_S else pause
            self._say(f"{name} ended with {describe(code)}; starting it again in {pause:.2f} s")
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_S)
            try:
                process = await self._start(process.program)
                await process.wait_ready(READY_S)
                self._say(f"{name} is ready again (process {process.pid})")
            except (PlatformError, OSError) as error:
                # It is dead (the next round starts it) or slow (then it may still get there).
                self._say(str(error))
