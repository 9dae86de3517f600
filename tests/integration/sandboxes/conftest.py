"""One payment sandbox and one mail sandbox for the session, without faults when a test begins."""

import signal
from collections.abc import AsyncIterator
from uuid import uuid4

import httpx
import pytest

from tests.integration.sandboxes.programs import (
    Mailbox,
    Payments,
    Program,
    payments_program,
    running_payments,
)
from tests.support.servers import free_port


@pytest.fixture(scope="session")
async def payments_server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Payments]:
    folder = tmp_path_factory.mktemp("payments")
    program = payments_program(folder)
    async with running_payments(program, folder) as payments:
        yield payments
    assert await program.end(signal.SIGTERM) == 0


@pytest.fixture
async def payments(payments_server: Payments) -> AsyncIterator[Payments]:
    yield payments_server
    await payments_server.faults()


@pytest.fixture
def order_id() -> str:
    return f"ord_{uuid4().hex}"


@pytest.fixture(scope="session")
async def mailbox_server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Mailbox]:
    inbox_port, smtp_port = free_port(), free_port()
    environment = {
        "MAIL_INBOX_PORT": str(inbox_port),
        "MAIL_SMTP_PORT": str(smtp_port),
        "MAIL_STORE": str(tmp_path_factory.mktemp("mail")),
    }
    program = Program("deploy.local.mail", environment, f"http://127.0.0.1:{inbox_port}")
    await program.start()
    async with httpx.AsyncClient(base_url=program.url) as http:
        yield Mailbox(program, smtp_port, http)
    assert await program.end(signal.SIGTERM) == 0


@pytest.fixture
async def mailbox(mailbox_server: Mailbox) -> AsyncIterator[Mailbox]:
    yield mailbox_server
    await mailbox_server.faults()
    await mailbox_server.http.delete("/api/messages")
