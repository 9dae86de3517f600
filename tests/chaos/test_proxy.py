"""The proxy spoils a link in the way that it says, and in no other."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

from tests.support.proxy import Mode, Proxy, proxy_to

SOON_S = 0.2  # what does not arrive in this time is not on its way: there is no signal for nothing
IN_TIME_S = 10.0


@dataclass
class Conversation:
    """A connection through the proxy to a server that answers with the same in capitals, and what the server heard."""

    proxy: Proxy
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    heard: list[bytes]

    async def say(self, words: bytes, within_s: float = IN_TIME_S) -> bytes:
        """What is answered; nothing when the connection ends."""
        self.writer.write(words)
        async with asyncio.timeout(within_s):
            return await self.reader.read(len(words))


@asynccontextmanager
async def conversation() -> AsyncIterator[Conversation]:
    heard: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while words := await reader.read(1000):
            heard.append(words)
            writer.write(words.upper())
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with proxy_to("127.0.0.1", server.sockets[0].getsockname()[1]) as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        talk = Conversation(proxy, reader, writer, heard)
        assert await talk.say(b"hello") == b"HELLO"
        yield talk
        writer.close()
    server.close()


async def test_a_blackhole_lets_nothing_through_and_the_deaf_hear_no_answer() -> None:
    async with conversation() as talk:
        talk.proxy.mode = Mode.BLACKHOLE
        assert await nothing(talk.say(b"lost", SOON_S))
        talk.proxy.mode = Mode.DEAF
        assert await nothing(talk.say(b"heard", SOON_S))

        assert talk.heard == [b"hello", b"heard"]


async def test_a_lost_reply_is_one_whose_request_arrived() -> None:
    async with conversation() as talk:
        lost = talk.proxy.drop_reply(b"COMMIT", nth=2)
        assert await talk.say(b"COMMIT;") == b"COMMIT;"

        assert await broken(talk.say(b"COMMIT;"))

        assert lost.is_set()
        assert talk.heard == [b"hello", b"COMMIT;", b"COMMIT;"]


async def test_a_limit_breaks_the_connection_that_has_carried_too_much() -> None:
    async with conversation() as talk:
        talk.proxy.limit_bytes = 20

        assert await talk.say(b"short") == b"SHORT"
        assert await broken(talk.say(b"much too long for that"))


async def test_the_server_hears_that_nothing_more_comes_over_a_half_closed_connection() -> None:
    async with conversation() as talk:
        talk.proxy.half_close()

        assert await broken(talk.say(b"more"))
        assert talk.heard == [b"hello"]


async def test_who_is_refused_cannot_connect_until_calls_are_accepted_again() -> None:
    async with conversation() as talk:
        await talk.proxy.refuse()
        with pytest.raises(ConnectionError):
            await asyncio.open_connection("127.0.0.1", talk.proxy.port)

        assert await talk.say(b"still here") == b"STILL HERE"
        talk.proxy.reset()
        assert await broken(talk.say(b"gone"))
        await talk.proxy.accept()

        _, writer = await asyncio.open_connection("127.0.0.1", talk.proxy.port)
        writer.close()


@pytest.mark.parametrize(
    "slow",
    [
        lambda proxy: setattr(proxy, "latency_s", SOON_S),
        lambda proxy: setattr(proxy, "bytes_per_s", 4 / SOON_S),
    ],
    ids=["latency", "bandwidth"],
)
async def test_what_is_slow_arrives_late_and_whole(slow: Callable[[Proxy], None]) -> None:
    async with conversation() as talk:
        slow(talk.proxy)
        talk.proxy.slice_bytes = 1
        began = asyncio.get_running_loop().time()

        talk.writer.write(b"words")
        assert await talk.reader.readexactly(5) == b"WORDS"

        assert asyncio.get_running_loop().time() - began >= SOON_S
        talk.proxy.calm()
        assert await talk.say(b"again") == b"AGAIN"


async def nothing(answer: Awaitable[bytes]) -> bool:
    try:
        await answer
    except TimeoutError:
        return True
    return False


async def broken(answer: Awaitable[bytes]) -> bool:
    try:
        return await answer == b""
    except ConnectionError:
        return True
