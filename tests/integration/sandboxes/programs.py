"""The sandboxes as real processes on free ports, with what the tests ask of them."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import stripe
from stripe import EventService, PaymentIntentService, RefundService

from tests.support.servers import free_port

ROOT = Path(__file__).parents[3]
SECRET_KEY = "sk_test_sandboxes"
WEBHOOK_SECRET = "whsec_sandboxes"
LEDGER = "ledger.jsonl"
READY_WITHIN_SECONDS = 60.0  # a machine with other things to do takes its time to import


@dataclass
class Program:
    """A sandbox process that can be killed and started again on the same port and files."""

    module: str
    environment: Mapping[str, str]
    url: str
    process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **self.environment}
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", self.module, env=environment, cwd=ROOT
        )
        try:
            async with asyncio.timeout(READY_WITHIN_SECONDS), httpx.AsyncClient() as client:
                while not await _answers(client, f"{self.url}/health/ready"):
                    assert self.process.returncode is None, f"{self.module} ended with {self.process.returncode}"
                    await asyncio.sleep(0.02)
        except BaseException:
            # Left running, it would do its work in the databases and streams of the tests that follow.
            self.kill()
            raise

    async def end(self, how: signal.Signals) -> int:
        assert self.process is not None
        self.process.send_signal(how)
        return await self.process.wait()

    def kill(self) -> None:
        """Make sure that it does not run."""
        if self.process is not None and self.process.returncode is None:
            self.process.kill()

    async def restart(self, how: signal.Signals) -> None:
        await self.end(how)
        await self.start()


async def _answers(client: httpx.AsyncClient, url: str) -> bool:
    try:
        return (await client.get(url)).is_success
    except httpx.TransportError:
        return False


@dataclass
class Payments:
    program: Program
    ledger_file: Path
    http: httpx.AsyncClient
    sdk: stripe.StripeClient

    @property
    def intents(self) -> PaymentIntentService:
        return self.sdk.v1.payment_intents

    @property
    def refunds(self) -> RefundService:
        return self.sdk.v1.refunds

    @property
    def events(self) -> EventService:
        return self.sdk.v1.events

    async def faults(self, **values: object) -> httpx.Response:
        return await self.http.post("/_sandbox/faults", json=values)

    async def row(self, order_id: str) -> dict[str, object]:
        """The one row of the ledger that belongs to this order."""
        items = (await self.http.get("/_sandbox/ledger")).json()["items"]
        rows: list[dict[str, object]] = [item for item in items if item["order_id"] == order_id]
        assert len(rows) == 1, rows
        return rows[0]

    async def charge(self, order_id: str, key: str | None = None, **form: str) -> httpx.Response:
        """A charge without the SDK, for what the SDK hides."""
        fields = {
            "amount": "200",
            "currency": "eur",
            "confirm": "true",
            "payment_method": "pm_card_visa",
            "metadata[order_id]": order_id,
            **form,
        }
        return await self.http.post(
            "/v1/payment_intents",
            data=fields,
            headers={"authorization": f"Bearer {SECRET_KEY}", "idempotency-key": key or order_id},
        )


@asynccontextmanager
async def running_payments(program: Program, folder: Path) -> AsyncIterator[Payments]:
    """Started, with its clients; the caller ends the process."""
    await program.start()
    transport = stripe.AIOHTTPClient(timeout=5)
    sdk = stripe.StripeClient(
        SECRET_KEY, base_addresses={"api": program.url}, max_network_retries=0, http_client=transport
    )
    async with httpx.AsyncClient(base_url=program.url) as http:
        yield Payments(program, folder / LEDGER, http, sdk)
    await transport.close_async()  # type: ignore[no-untyped-call]


def payments_program(folder: Path, **environment: str) -> Program:
    port = free_port()
    base = {
        "PAYMENTS_PORT": str(port),
        "PAYMENTS_LEDGER": str(folder / LEDGER),
        "PAYMENTS_SECRET_KEY": SECRET_KEY,
    }
    return Program("deploy.local.payments", {**base, **environment}, f"http://127.0.0.1:{port}")


@dataclass
class Mailbox:
    program: Program
    smtp_port: int
    http: httpx.AsyncClient

    async def faults(self, **values: object) -> httpx.Response:
        return await self.http.post("/api/faults", json=values)

    async def messages(self, **query: str | int) -> list[dict[str, object]]:
        items: list[dict[str, object]] = (await self.http.get("/api/messages", params=query)).json()["items"]
        return items
