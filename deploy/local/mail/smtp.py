"""The SMTP side: accepts every mail into the store, unless a fault says otherwise."""

import asyncio
import logging
import socket
import struct

from aiosmtpd.smtp import SMTP, Envelope, Session

from deploy.local.mail.faults import FaultPlan
from deploy.local.mail.store import Store

MAX_MAIL_BYTES = 32 * 1024 * 1024
LINGER_0 = struct.pack("ii", 1, 0)
ACCEPTED = "250 2.0.0 OK"


class Receiver:
    """aiosmtpd's handler: what happens at MAIL, RCPT and after the dot."""

    def __init__(self, store: Store, faults: FaultPlan) -> None:
        self._store = store
        self._faults = faults

    async def handle_MAIL(  # noqa: N802 - aiosmtpd finds its hooks by these names
        self, _server: SMTP, _session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        refusal = self._faults.refusal_at("mail")
        if refusal is None:
            envelope.mail_from = address
            envelope.mail_options.extend(options)
        return refusal or ACCEPTED

    async def handle_RCPT(  # noqa: N802
        self, _server: SMTP, _session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        refusal = self._faults.refusal_at("rcpt")
        if refusal is None:
            envelope.rcpt_tos.append(address)
            envelope.rcpt_options.extend(options)
        return refusal or ACCEPTED

    async def handle_DATA(self, server: SMTP, _session: Session, envelope: Envelope) -> str:  # noqa: N802
        refusal = self._faults.refusal_at("data")
        if refusal is not None:
            return refusal
        content = envelope.content
        raw = content.encode() if isinstance(content, str) else content or b""
        mail = self._store.add(envelope.mail_from or "", envelope.rcpt_tos, raw)
        if self._faults.drops():
            await _reset(server)
        return f"{ACCEPTED} kept as {mail.id}"


async def _reset(server: SMTP) -> None:
    """The client sees ECONNRESET; this waits for ever, because losing the connection cancels its task."""
    transport = server.transport
    if transport is not None:
        connection = transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_0)
        transport.abort()
    await asyncio.Event().wait()


class Connection(SMTP):
    """aiosmtpd's protocol with a late greeting, and closing after a 421 as the RFC wants it."""

    def __init__(self, receiver: Receiver, faults: FaultPlan) -> None:
        super().__init__(receiver, data_size_limit=MAX_MAIL_BYTES, enable_SMTPUTF8=True, hostname="mail.sandbox")
        self._faults = faults

    async def push(self, status: str | bytes) -> None:
        text = status if isinstance(status, str) else status.decode()
        delay_ms = self._faults.active.greeting_delay_ms
        if delay_ms and text.startswith("220 "):
            await asyncio.sleep(delay_ms / 1000)
        await super().push(text)
        if text.startswith("421 ") and self.transport is not None:
            self.transport.close()


async def listen(host: str, port: int, store: Store, faults: FaultPlan) -> asyncio.Server:
    logging.getLogger("mail.log").setLevel(logging.ERROR)  # aiosmtpd tells every command of every mail otherwise
    receiver = Receiver(store, faults)
    return await asyncio.get_running_loop().create_server(lambda: Connection(receiver, faults), host, port)
