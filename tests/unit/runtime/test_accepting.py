"""How fast connections are accepted while the event loop has other things to do."""

import asyncio
import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import uvloop

from shared.runtime.process import listen
from shared.runtime.supervision import ACCEPTED_AT_ONCE, acceptors

CROWD = 4 * ACCEPTED_AT_ONCE


def test_a_crowd_of_connections_is_accepted_in_a_few_turns_of_the_event_loop() -> None:
    with ThreadPoolExecutor() as pool:  # the loop of the services, which the tests do not run on
        turns = pool.submit(uvloop.run, turns_until_all_are_accepted()).result(timeout=20)

    assert turns <= 10


async def turns_until_all_are_accepted() -> int:
    """How often a task that only yields gets its turn meanwhile."""
    with ExitStack() as stack:
        listener = stack.enter_context(listen("127.0.0.1", 0, "TEST_PORT"))
        crowd = [stack.enter_context(socket.create_connection(listener.getsockname())) for _ in range(CROWD)]
        accepted: list[asyncio.Protocol] = []
        servers = [await serve(one, accepted) for one in stack.enter_context(acceptors(listener))]
        turns = 0
        while len(accepted) < len(crowd):
            await asyncio.sleep(0)
            turns += 1
        for server in servers:
            server.close()
        return turns


async def serve(listener: socket.socket, accepted: list[asyncio.Protocol]) -> asyncio.Server:
    class Guest(asyncio.Protocol):
        def __init__(self) -> None:
            accepted.append(self)

    return await asyncio.get_running_loop().create_server(Guest, sock=listener, backlog=CROWD)
