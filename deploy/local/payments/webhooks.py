"""Signed webhooks: every event is posted until the receiver has taken it, over restarts too."""

import asyncio
import hashlib
import hmac
import random
import sys
import time
from contextlib import AsyncExitStack

import httpx
from httpx_aiohttp import AiohttpTransport

from deploy.local.payments.events import Event, render
from deploy.local.payments.ledger import Ledger

SENDERS = 8
# Whoever sent the request was answered already: such events are no news to anybody, and would take a quarter of the
# machine under load. One after the other, at the most twenty a second; what nobody was told of is sent at once.
PAUSE_AFTER_NO_NEWS_SECONDS = 0.05
TIMEOUT_SECONDS = 10.0
FIRST_RETRY_SECONDS = 0.5
LONGEST_RETRY_SECONDS = 60.0
JITTER = 0.1
GIVEN_UP_AFTER_SECONDS = 3 * 24 * 3600  # as long as Stripe tries
DELIVERED_PER_LINE = 100
REPORTED = frozenset({"payment_intent.succeeded", "payment_intent.payment_failed", "charge.refunded"})


def sign(body: bytes, secret: str, now: float) -> str:
    """The Stripe-Signature header: HMAC-SHA256 over `<time>.<body>`."""
    stamp = int(now)
    digest = hmac.new(secret.encode(), b"%d." % stamp + body, hashlib.sha256).hexdigest()
    return f"t={stamp},v1={digest}"


def retry_delay(failures: int) -> float:
    """0.5, 1, 2, 4 … 60 seconds, each 10 % more or less."""
    delay = min(FIRST_RETRY_SECONDS * 2.0 ** min(failures - 1, 16), LONGEST_RETRY_SECONDS)
    return delay * random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311 - spreads retries, hides nothing


class Webhooks:
    def __init__(self, ledger: Ledger, url: str, secret: str, owed: list[Event]) -> None:
        self._ledger = ledger
        self._url = url
        self._secret = secret
        self._news: asyncio.Queue[tuple[Event, int]] = asyncio.Queue()
        self._no_news: asyncio.Queue[tuple[Event, int]] = asyncio.Queue()
        self._delivered: list[str] = []
        for event in owed:
            self._put(event, 0)
        ledger.on_event = self.enqueue

    def enqueue(self, event: Event) -> None:
        if event.type in REPORTED:
            self._put(event, 0)

    def _put(self, event: Event, failures: int) -> None:
        queue = self._news if event.idempotency_key is None else self._no_news
        queue.put_nowait((event, failures))

    async def run(self) -> None:
        """Until cancelled."""
        async with AsyncExitStack() as stack:
            transport = AiohttpTransport()
            client = await stack.enter_async_context(httpx.AsyncClient(transport=transport, timeout=TIMEOUT_SECONDS))
            stack.callback(self._note_delivered)
            senders = (self._send_all(client, self._news, 0.0) for _ in range(SENDERS))
            await asyncio.gather(*senders, self._send_all(client, self._no_news, PAUSE_AFTER_NO_NEWS_SECONDS))

    async def _send_all(
        self, client: httpx.AsyncClient, waiting: "asyncio.Queue[tuple[Event, int]]", pause: float
    ) -> None:
        while True:
            event, failures = await waiting.get()
            if await self._send(client, event):
                self._delivered.append(event.id)
                if waiting.empty() or len(self._delivered) >= DELIVERED_PER_LINE:
                    self._note_delivered()
            else:
                self._again(event, failures + 1)
            await asyncio.sleep(pause)

    async def _send(self, client: httpx.AsyncClient, event: Event) -> bool:
        body = render(event, self._ledger.event_object(event))
        headers = {
            "content-type": "application/json; charset=utf-8",
            "stripe-signature": sign(body, self._secret, time.time()),
        }
        try:
            answer = await client.post(self._url, content=body, headers=headers)
        except httpx.HTTPError:
            return False  # the receiver is down: normal in tests, the retry is the answer to it
        return answer.is_success

    def _again(self, event: Event, failures: int) -> None:
        if time.time() - event.created > GIVEN_UP_AFTER_SECONDS:
            sys.stderr.write(f"payment sandbox: gave up webhook {event.id} after {failures} attempts\n")
            self._delivered.append(event.id)
            return
        loop = asyncio.get_running_loop()
        loop.call_later(retry_delay(failures), self._put, event, failures)

    def _note_delivered(self) -> None:
        if self._delivered:
            self._ledger.record_delivered(self._delivered)
            self._delivered = []
