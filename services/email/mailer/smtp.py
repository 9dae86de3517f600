from __future__ import annotations

import re
import socket
import ssl
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Protocol
from urllib.parse import unquote, urlsplit

import aiosmtplib
from typing_extensions import override

from services.email.domain import Verdict, verdict_of_reply
from shared.runtime.failpoints import reach
from shared.runtime.supervision import brief

if TYPE_CHECKING:
    from services.email.settings import EmailSettings

CONNECT_TIMEOUT_S = 10.0
COMMAND_TIMEOUT_S = 15.0
ACCEPT_TIMEOUT_S = 60.0  # the answer after the final dot: the server may be scanning the mail
IDLE_S = 10.0  # servers close idle connections; a command on a closed one only costs time
MAILS_PER_CONNECTION = 500  # and they refuse long sessions
START_INPUT = 354
ACCEPTED = 250
_LEADING_DOT = re.compile(rb"(?m)^\.")


@dataclass(frozen=True, slots=True)
class Attempt:
    """What came of one attempt, with the server's words or the error."""

    verdict: Verdict
    detail: str = ""


class Transport(Protocol):
    """Something that mails can be handed to."""

    async def send(self, recipient: str, mail: bytes) -> Attempt:
        """Hand one mail over. Never raises because of the other side: what it does is in the verdict."""
        ...

    async def close(self) -> None:
        """Close every connection."""
        ...


class _Broken(Exception):
    """The connection cannot be used any more; the verdict says what that means for the mail."""

    def __init__(self, verdict: Verdict, detail: str) -> None:
        super().__init__(detail)
        self.verdict = verdict
        self.detail = detail


class Smtp(Transport):
    """A mail server, reached over connections that are kept and used again."""

    def __init__(self, settings: EmailSettings) -> None:
        """Connect when there is something to send, not before."""
        self._url = settings.smtp_url.get_secret_value()
        self._sender = settings.from_address
        self._idle: list[_Connection] = []

    @override
    async def send(self, recipient: str, mail: bytes) -> Attempt:
        try:
            connection = await self._borrow()
        except _Broken as error:
            return Attempt(error.verdict, error.detail)
        try:
            attempt = await self._hand_over(connection, recipient, mail)
        except _Broken as error:
            connection.close()
            return Attempt(error.verdict, error.detail)
        except BaseException:
            # Cancelled half-way: the server's next answer would be taken for one to something else.
            connection.close()
            raise
        await self._give_back(connection, attempt)
        return attempt

    @override
    async def close(self) -> None:
        while self._idle:
            await self._idle.pop().quit()

    async def _hand_over(self, connection: _Connection, recipient: str, mail: bytes) -> Attempt:
        try:
            return await connection.send(self._sender, recipient, mail)
        except _Broken as error:
            if not connection.was_idle or error.verdict is not Verdict.INTERRUPTED:
                raise
        # The server closed the connection while it was idle: that says nothing about the server as it is now.
        connection.close()
        fresh = await self._connect()
        connection.take_over(fresh)
        return await connection.send(self._sender, recipient, mail)

    async def _borrow(self) -> _Connection:
        while self._idle:
            connection = self._idle.pop()
            if connection.usable:
                connection.was_idle = True
                return connection
            connection.close()
        return await self._connect()

    async def _give_back(self, connection: _Connection, attempt: Attempt) -> None:
        if attempt.verdict is Verdict.OUTAGE or not connection.usable:
            connection.close()
            return
        if attempt.verdict is not Verdict.SENT and not await connection.reset():
            return
        connection.used_at = monotonic()
        self._idle.append(connection)

    async def _connect(self) -> _Connection:
        client = _client(self._url)
        try:
            await reach("E1")
            await client.connect()
        except aiosmtplib.SMTPAuthenticationError as error:
            client.close()
            verdict = verdict_of_reply(error.code)
            # A temporary refusal of a login (454) says something about the server, not about any mail.
            raise _Broken(
                Verdict.OUTAGE if verdict is Verdict.LATER else Verdict.MISCONFIGURED, brief(error)
            ) from error
        except aiosmtplib.SMTPNotSupported as error:
            client.close()
            raise _Broken(Verdict.MISCONFIGURED, brief(error)) from error
        except (aiosmtplib.SMTPException, OSError, ssl.SSLError, ValueError) as error:
            client.close()
            raise _Broken(Verdict.OUTAGE, brief(error)) from error
        return _Connection(client)


class _Connection:
    """One SMTP session."""

    def __init__(self, client: aiosmtplib.SMTP) -> None:
        self._client = client
        self._mails = 0
        self.was_idle = False
        self.used_at = monotonic()

    @property
    def usable(self) -> bool:
        fresh = monotonic() - self.used_at < IDLE_S and self._mails < MAILS_PER_CONNECTION
        return fresh and self._client.is_connected

    async def send(self, sender: str, recipient: str, mail: bytes) -> Attempt:
        """One mail transaction (RFC 5321, 3.3)."""
        self._mails += 1
        try:
            await self._client.mail(sender, timeout=COMMAND_TIMEOUT_S)
            await self._client.rcpt(recipient, timeout=COMMAND_TIMEOUT_S)
            await reach("E2")
            start = await self._client.execute_command(b"DATA", timeout=COMMAND_TIMEOUT_S)
            await reach("E3")
        except aiosmtplib.SMTPResponseException as error:
            return _refused(error.code, error.message)
        except (aiosmtplib.SMTPException, OSError) as error:
            raise _Broken(Verdict.INTERRUPTED, brief(error)) from error
        if start.code != START_INPUT:
            return _refused(start.code, start.message)
        return await self._finish(mail)

    async def _finish(self, mail: bytes) -> Attempt:
        """The mail, the final dot, and the answer. If the connection breaks from here on, nobody knows."""
        protocol = self._client.protocol
        if protocol is None:
            raise _Broken(Verdict.INTERRUPTED, "the connection was lost before the mail")
        try:
            protocol.write(_LEADING_DOT.sub(b"..", mail) + b".\r\n")
            await reach("E4")
            answer = await protocol.read_response(timeout=ACCEPT_TIMEOUT_S)
        except (aiosmtplib.SMTPException, OSError) as error:
            raise _Broken(Verdict.UNKNOWN, brief(error)) from error
        return Attempt(Verdict.SENT) if answer.code == ACCEPTED else _refused(answer.code, answer.message)

    async def reset(self) -> bool:
        """After a refusal: forget the mail transaction, so that the next one can begin."""
        try:
            await self._client.rset(timeout=COMMAND_TIMEOUT_S)
        except (aiosmtplib.SMTPException, OSError):
            # It was about to be thrown away or kept: now it is thrown away.
            self.close()
            return False
        return True

    def take_over(self, fresh: _Connection) -> None:
        self._client = fresh._client
        self._mails = 0
        self.was_idle = False

    def close(self) -> None:
        self._client.close()

    async def quit(self) -> None:
        try:
            await self._client.quit(timeout=1.0)
        except (aiosmtplib.SMTPException, OSError):
            # Politeness only: the server notices by itself that we left.
            self.close()


def _refused(code: int, message: str) -> Attempt:
    return Attempt(verdict_of_reply(code), f"{code} {message}")


def _client(url: str) -> aiosmtplib.SMTP:
    parts = urlsplit(url)
    implicit = parts.scheme == "smtps"
    return aiosmtplib.SMTP(
        hostname=parts.hostname,
        port=parts.port or (465 if implicit else 25),
        username=unquote(parts.username) if parts.username else None,
        password=unquote(parts.password) if parts.password else None,
        # Left to itself it would look the machine's full name up, which blocks the event loop.
        local_hostname=socket.gethostname(),
        timeout=CONNECT_TIMEOUT_S,
        use_tls=implicit,
        # smtp:// encrypts when the server offers it; a password insists on it by its own scheme.
        start_tls=False if implicit else (True if parts.scheme == "smtp+starttls" else None),
    )
