"""The layer between server and application, against clients that take their time."""

import asyncio
from typing import Any

from starlette.types import Message, Receive, Scope, Send

from shared.web.middleware import Edge

SCOPE: Scope = {
    "type": "http",
    "method": "POST",
    "path": "/",
    "query_string": b"",
    "headers": [(b"content-length", b"10")],
}


async def echo(_: Scope, receive: Receive, send: Send) -> None:
    body = (await receive())["body"]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


async def ask(edge: Edge, *messages: Message) -> list[Any]:
    """What the client gets when it sends these messages and then nothing."""
    sent: list[Any] = []
    waiting = list(messages)

    async def receive() -> Message:
        if waiting:
            return waiting.pop(0)
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Message) -> None:
        sent.append(message)

    await edge(dict(SCOPE), receive, send)
    return sent


def part(body: bytes, *, more: bool) -> Message:
    return {"type": "http.request", "body": body, "more_body": more}


async def test_a_body_in_pieces_arrives_whole() -> None:
    sent = await ask(Edge(echo), part(b"01234", more=True), part(b"56789", more=False))

    assert sent[1]["body"] == b"0123456789"


async def test_a_body_that_never_ends_is_answered_with_a_timeout() -> None:
    sent = await ask(Edge(echo, body_deadline_s=0.02), part(b"01234", more=True))

    assert sent[0]["status"] == 408
    assert (b"connection", b"close") in sent[0]["headers"]


async def test_a_client_that_leaves_is_not_answered() -> None:
    sent = await ask(Edge(echo), part(b"01234", more=True), {"type": "http.disconnect"})

    assert sent == []


async def test_an_application_that_fails_half_way_breaks_the_connection_visibly() -> None:
    async def half(_: Scope, __: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise ValueError("half")

    failed = None
    try:
        await ask(Edge(half), part(b"0123456789", more=False))
    except ValueError as error:
        failed = error

    assert str(failed) == "half"
