"""Checkout as a process of its own, as `python -m services.checkout` starts it."""

import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.integration.sandboxes.programs import SECRET_KEY, Payments, Program
from tests.support.servers import free_port


@asynccontextmanager
async def checkout_process(
    database_url: str, redis_url: str, payments: Payments, **environment: str
) -> AsyncIterator[Program]:
    """Started and ready; stopped in order at the end."""
    port = free_port()
    base = {
        "CHECKOUT_PORT": str(port),
        "CHECKOUT_DATABASE_URL": database_url,
        "CHECKOUT_REDIS_URL": redis_url,
        "CHECKOUT_PAYMENTS_URL": payments.program.url,
        "CHECKOUT_PAYMENTS_SECRET_KEY": SECRET_KEY,
    }
    program = Program("services.checkout", {**base, **environment}, f"http://127.0.0.1:{port}")
    await program.start()
    try:
        yield program
    finally:
        stopped = await program.end(signal.SIGTERM)
    assert stopped == 0
