"""The smallest service that survives: it tells who it is, and ends as it is told.

Run with the number of a listening socket, how many revivals there may be, and how long it takes to stop.
"""

import asyncio
import ctypes
import os
import signal
import socket
import sys

from shared.runtime.revival import Lockstep, survive

PR_SET_CHILD_SUBREAPER = 36


async def serve(listener: socket.socket, died: int, stops_after_s: float) -> None:
    stopped = asyncio.Event()

    def stop() -> None:
        os.write(1, b"told\n")
        stopped.set()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"%d %d\n" % (os.getpid(), died))
        match (await reader.readline()).split():
            case [b"exit", code]:
                os._exit(int(code))
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
    await asyncio.sleep(stops_after_s)
    lockstep.cancel()


def main() -> None:
    number, revivals, stops_after_s = sys.argv[1:]
    listener = socket.socket(fileno=int(number))
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    died = survive(listener, int(revivals))
    asyncio.run(serve(listener, died, float(stops_after_s)))


if __name__ == "__main__":
    main()
