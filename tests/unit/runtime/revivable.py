"""The smallest service that survives: it tells who it is, and ends as it is told.

Run with its port, how many revivals there may be, and how many seconds it takes to stop.
"""

import asyncio
import ctypes
import os
import signal
import socket
import sys

from shared.runtime.process import listen
from shared.runtime.revival import Lockstep, survive
from shared.runtime.supervision import close_port

PR_SET_CHILD_SUBREAPER = 36


async def serve(listener: socket.socket, died: int, stops_after_s: float) -> None:
    stopped = asyncio.Event()
    status = 0

    def stop() -> None:
        os.write(1, b"told\n")
        stopped.set()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal status
        writer.write(b"%d %d\n" % (os.getpid(), died))
        match (await reader.readline()).split():
            case [b"exit", code]:
                os._exit(int(code))
            case [b"resign"]:
                status = 1
                stopped.set()
            case [b"orphan"]:
                if not os.fork():
                    os.execvp("sleep", ["sleep", "60"])  # noqa: S606, S607
            case _:
                pass
        writer.close()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop)
    lockstep = asyncio.create_task(Lockstep().run())
    async with await asyncio.start_server(answer, sock=listener):
        await stopped.wait()
        close_port([listener])
    await asyncio.sleep(stops_after_s)
    lockstep.cancel()
    sys.exit(status)


def main() -> None:
    port, revivals, stops_after_s = sys.argv[1:]
    listener = listen("127.0.0.1", int(port), "PORT")
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    died = survive(int(revivals))
    listener.listen()
    asyncio.run(serve(listener, died, float(stops_after_s)))


if __name__ == "__main__":
    main()
