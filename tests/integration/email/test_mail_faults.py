"""Everything that a mail server may do wrong, and a sender that dies or stumbles at each of its moments.

What holds each time: a mail that was not refused for good arrives, at most once more than it was in doubt, and all
its copies have one Message-ID.
"""

import asyncio
import multiprocessing
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import asyncpg
import pytest
from sqlalchemy import make_url

from deploy.local.mail.faults import Faults, Step
from services.email.mailer import smtp as smtp_module
from services.email.mailer.letters import Letters
from services.email.mailer.sender import Recorder, Sender
from services.email.mailer.smtp import Smtp
from services.email.settings import EmailSettings
from shared.runtime import failpoints
from shared.runtime.db import Database
from tests.integration.email.conftest import World
from tests.support.orders import Order
from tests.support.proxy import proxy_to
from tests.support.servers import free_port

LATER, FOREVER, OUTAGE, OURS = "queued 1", "failed 1", "queued 0", "queued 0 misconfigured"
ANSWERS = {
    421: OUTAGE,
    450: LATER,
    451: LATER,
    452: LATER,
    454: LATER,
    530: OURS,
    535: OURS,
    550: FOREVER,
    552: FOREVER,
    554: FOREVER,
}
COPIES = {"E1": 1, "E2": 1, "E3": 1, "E4": 2, "E5": 2}


@pytest.mark.parametrize("step", ["mail", "rcpt", "data"])
@pytest.mark.parametrize("code", ANSWERS)
async def test_each_refusal_at_each_step_has_its_consequence(world: World, code: int, step: Step) -> None:
    world.mailbox.refuse(code, step)
    await world.deliver(Order().completed())

    await world.send()
    refused = await said(world)
    world.mailbox.behave()
    await world.later()
    await world.send()

    assert refused == ANSWERS[code]
    assert len(world.mailbox.mails()) == (0 if ANSWERS[code] is FOREVER else 1)
    assert (await said(world)).split()[0] == ("failed" if ANSWERS[code] is FOREVER else "sent")


async def test_a_late_greeting_is_an_outage(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smtp_module, "CONNECT_TIMEOUT_S", 0.3)
    world.mailbox.faults.set(Faults(greeting_delay_ms=1_000))
    await world.deliver(Order().completed())

    await world.send()

    assert await said(world) == OUTAGE
    await arrives(world, copies=1)


async def test_a_server_that_falls_silent_in_the_middle_is_left(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smtp_module, "COMMAND_TIMEOUT_S", 0.3)
    await world.deliver(Order().completed())

    async with scripted(b"220 tarpit\r\n", {b"EHLO": b"250 tarpit\r\n"}) as url:
        await send_to(world, url)

    assert await said(world) == OUTAGE
    await arrives(world, copies=1)


@pytest.mark.parametrize(
    ("scheme", "offers", "answer"),
    [
        ("smtp", b"250 AUTH PLAIN\r\n", b"535 5.7.8 wrong password\r\n"),
        ("smtp", b"250 AUTH PLAIN\r\n", b"534 5.7.9 too weak\r\n"),
        ("smtp", b"250 8BITMIME\r\n", b""),
        ("smtp+starttls", b"250 AUTH PLAIN\r\n", b""),
        ("smtp+starttls", b"250 STARTTLS\r\n", b""),
        ("smtps", b"250 AUTH PLAIN\r\n", b""),
    ],
    ids=["wrong password", "too weak", "no logins", "no TLS", "TLS that fails", "no TLS at all"],
)
async def test_a_server_that_does_not_let_us_in_costs_no_attempt(
    world: World, monkeypatch: pytest.MonkeyPatch, scheme: str, offers: bytes, answer: bytes
) -> None:
    monkeypatch.setattr(smtp_module, "CONNECT_TIMEOUT_S", 2.0)
    await world.deliver(Order().completed())

    script = {b"EHLO": b"250-mail\r\n" + offers, b"AUTH": answer, b"STARTTLS": b"220 go ahead\r\n"}
    async with scripted(b"220 mail\r\n", script) as url:
        await send_to(world, url.replace("smtp://", f"{scheme}://me:secret@"))

    assert (await said(world)).startswith(OUTAGE)
    if answer:
        assert await said(world) == OURS
    world.sender = world.new_sender()
    await arrives(world, copies=1)


@pytest.mark.parametrize("point", COPIES)
async def test_a_connection_that_is_lost_at_each_moment_doubles_a_mail_only_where_it_was_in_doubt(
    world: World, point: str
) -> None:
    await world.deliver(Order().completed())

    failpoints.arm(failpoints.parse(f"{point}=raise@1"))
    try:
        await world.send()
    finally:
        failpoints.arm([])

    await world.execute("UPDATE messages SET lease_until = now() - interval '1 second' WHERE status = 'sending'")
    world.sender = world.new_sender("another")
    await arrives(world, copies=COPIES[point])


@pytest.mark.parametrize("point", COPIES)
async def test_a_sender_that_dies_at_each_moment_is_followed_up(world: World, migrated: str, point: str) -> None:
    await world.deliver(Order().completed())
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pytest", "services.email.app", "tests.integration.email.test_mail_faults"])
    port = world.mailbox.port
    sender = context.Process(target=_live, args=(migrated, port, f"{point}=exit"), daemon=True)

    await asyncio.to_thread(sender.start)
    async with asyncio.timeout(60):
        while sender.exitcode is None:
            await asyncio.sleep(0.02)

    assert sender.exitcode == failpoints.EXIT_STATUS
    assert await world.messages("status") == [("sending",)]
    await arrives(world, copies=COPIES[point])  # the same replica, started again


async def test_a_taking_whose_answer_is_lost_delays_its_mails_for_a_moment_and_doubles_none(
    world: World, migrated: str
) -> None:
    """Committed, but nobody holds what was taken; what the same sender holds besides must not be taken for that."""
    server = make_url(migrated)
    async with proxy_to(server.host or "", server.port or 0) as proxy:
        link = Database(server.set(port=proxy.port).render_as_string(hide_password=False), "test", 2)
        world.sender = world.new_sender("a-cut-off-sender", link)
        await world.deliver(Order().completed())
        world.mailbox.faults.set(Faults(greeting_delay_ms=500))
        await world.sender.run_once()
        await world.deliver(Order().completed())
        lost = proxy.drop_reply(b"a-cut-off-sender")
        with pytest.raises(asyncpg.PostgresConnectionError):
            await world.sender.run_once()
        assert lost.is_set()
        in_hand_and_lost = await world.messages("status")

        await world.send()
        await world.sender.settle()
        await link.close()

    assert in_hand_and_lost == [("sending",), ("sending",)]
    assert await world.messages("status") == [("sent",), ("sent",)]
    assert len(world.mailbox.mails()) == 2


async def arrives(world: World, copies: int) -> None:
    """Everything behaves again: the mail arrives, with so many copies in all, under one Message-ID."""
    world.mailbox.behave()
    for _ in range(3):
        await world.later()
        await world.send()
    mails = world.mailbox.mails()
    assert len(mails) == copies
    assert len({mail["Message-ID"] for mail in mails}) == 1
    assert await world.messages("status") == [("sent",)]


async def said(world: World) -> str:
    [(status, attempts)] = await world.messages("status, attempts")
    return f"{status} {attempts}" + (" misconfigured" if world.sender.breaker.misconfigured else "")


async def send_to(world: World, url: str) -> None:
    """Send what is due, once, to another server."""
    changed = world.settings.model_copy(update={"smtp_url": type(world.settings.smtp_url)(url)})
    usual, world.settings = world.settings, changed
    world.sender = world.new_sender()
    await world.send()
    world.settings = usual
    reported = world.sender.breaker
    world.sender = world.new_sender()
    world.sender.breaker = reported


@asynccontextmanager
async def scripted(greeting: bytes, answers: dict[bytes, bytes]) -> AsyncIterator[str]:
    """A server that answers by the first word, and with silence to what it does not know."""

    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        writer.write(greeting)
        with suppress(ConnectionError):  # the client may leave as it likes
            while line := await reader.readline():
                writer.write(answers.get(line.split()[0].upper() if line.split() else b"", b""))

    port = free_port()
    server = await asyncio.start_server(serve, "127.0.0.1", port)
    try:
        yield f"smtp://127.0.0.1:{port}"
    finally:
        server.close()
        for writer in writers:
            writer.close()


def _live(database_url: str, port: int, armed: str) -> None:
    """In the child: a sender and its recorder, until it dies."""
    asyncio.run(_send(database_url, port, armed))


async def _send(database_url: str, port: int, armed: str) -> None:
    settings = EmailSettings.model_validate(
        {
            "port": 1,
            "database_url": database_url,
            "redis_url": "redis://localhost",
            "smtp_url": f"smtp://127.0.0.1:{port}",
            "from_address": "shop@orderstream.example",
        }
    )
    db = Database(database_url, "test", 4)
    recorder = Recorder(db)
    letters = Letters(settings.from_address, settings.from_name)
    sender = Sender(db, letters, Smtp(settings), recorder, owner="test", connections=4, max_rate=100.0)
    failpoints.arm(failpoints.parse(armed))
    running: list[Callable[[], Awaitable[None]]] = [recorder.run, sender.run]
    await asyncio.gather(*(run() for run in running))
