"""`python -m deploy.local.payments` serves the payment sandbox until SIGTERM."""

import gc
import signal
import sys

import uvicorn

from deploy.local.payments.app import Sandbox
from deploy.local.payments.connection import ResettableProtocol
from deploy.local.payments.events import Event
from deploy.local.payments.journal import Journal, JournalError
from deploy.local.payments.ledger import Ledger
from deploy.local.payments.settings import Settings, SettingsError, read_settings

# Every charge stays in memory. With Python's defaults the collector would walk all of them again and again,
# with pauses of a second at a million charges, and nothing here makes cycles worth finding.
GC_THRESHOLDS = (50_000, 50, 1_000)


def main() -> int:
    # uvicorn stops on these signals, then raises them again: without this the exit code would say "killed".
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    try:
        settings = read_settings()
        journal = Journal(settings.ledger)
        ledger = Ledger(journal)
        owed = ledger.replay()
    except (SettingsError, JournalError, OSError) as error:
        sys.stderr.write(f"payment sandbox: {error}\n")
        return 1
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    serve(settings, ledger, owed)
    journal.close()
    return 0


def serve(settings: Settings, ledger: Ledger, owed: list[Event]) -> None:
    print(
        f"payment sandbox: http://{settings.host}:{settings.port} ({len(ledger.intents)} payments)",
        flush=True,
    )
    uvicorn.run(
        Sandbox(ledger, settings, owed),
        host=settings.host,
        port=settings.port,
        loop="uvloop",
        http=ResettableProtocol,
        lifespan="on",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        log_level="warning",
        timeout_graceful_shutdown=2,
    )


if __name__ == "__main__":
    sys.exit(main())
