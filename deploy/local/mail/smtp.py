"""The SMTP side: accepts every mail into the store, unless a fault says otherwise."""

import asyncio
import logging
import socket
import struct
from typing import cast

from aiosmtpd.smtp import SMTP, Envelope, Session
from typing_extensions import override

from deploy.local.mail.faults import FaultPlan
from deploy.local.mail.store import Store

MAX_MAIL_BYTES = 32 * 1024 * 1024
LINGER_0 = struct.pack("ii", 1, 0)
LAST_LINE = b".\r\n"
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
        cast("asyncio.Transport", transport).abort()
    await asyncio.Event().wait()


class Connection(SMTP):
    """aiosmtpd's protocol with a late greeting, and closing after a 421 as the RFC wants it."""

    # The reader's limit, not a line's: with it a mail is read in few large pieces. aiosmtpd reads by lines,
    # which halves the rate for a short mail and is far worse for a long one.
    line_length_limit = MAX_MAIL_BYTES

    def __init__(self, receiver: Receiver, faults: FaultPlan) -> None:
        super().__init__(receiver, data_size_limit=MAX_MAIL_BYTES, enable_SMTPUTF8=True, hostname="mail.sandbox")
        self._faults = faults

    @override
    async def push(self, status: str | bytes) -> None:
        text = status if isinstance(status, str) else status.decode()
        delay_ms = self._faults.active.greeting_delay_ms
        if delay_ms and text.startswith("220 "):
            await self._hesitate(delay_ms / 1000)
        await super().push(text)
        if text.startswith("421 ") and self.transport is not None:
            self.transport.close()

    async def _hesitate(self, seconds: float) -> None:
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            # The client has left. aiosmtpd hangs up in answer only from its first command on.
            if self.transport is not None:
                self.transport.close()
            raise

    @override
    async def smtp_DATA(self, arg: str | None) -> None:
        assert self.envelope is not None  # noqa: S101 - for the type checker
        if arg is not None:
            await self.push("501 5.5.4 Syntax: DATA")
        elif not self.envelope.rcpt_tos:
            await self.push("503 5.5.1 need RCPT first")
        else:
            await self.push("354 End data with <CR><LF>.<CR><LF>")
            await self._receive_mail(self.envelope)

    async def _receive_mail(self, envelope: Envelope) -> None:
        try:
            raw = await self._read_to_dot()
        except asyncio.LimitOverrunError:
            await self.push(f"421 4.3.4 mail is larger than {MAX_MAIL_BYTES} bytes")
            return
        envelope.content = unstuff(raw)
        status: str = await self._call_handler_hook("DATA")
        self._set_post_data_state()  # type: ignore[no-untyped-call]
        await self.push(status)

    async def _read_to_dot(self) -> bytes:
        raw = b""
        while raw != LAST_LINE and not raw.endswith(b"\r\n" + LAST_LINE):
            raw += await self._reader.readuntil(LAST_LINE)
            if len(raw) > MAX_MAIL_BYTES:
                raise asyncio.LimitOverrunError("mail too large", len(raw))
        return raw[: -len(LAST_LINE)]


def unstuff(raw: bytes) -> bytes:
    """Take away the dot that the client put before each line that begins with one (RFC 5321, 4.5.2)."""
    return (b"\r\n" + raw).replace(b"\r\n.", b"\r\n")[2:]


async def listen(host: str, port: int, store: Store, faults: FaultPlan) -> asyncio.Server:
    logging.getLogger("mail.log").setLevel(logging.ERROR)  # aiosmtpd tells every command of every mail otherwise
    receiver = Receiver(store, faults)
    return await asyncio.get_running_loop().create_server(lambda: Connection(receiver, faults), host, port)
