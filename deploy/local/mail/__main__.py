"""`python -m deploy.local.mail` serves SMTP and the inbox in one event loop until SIGTERM."""

import signal
import sys

import uvicorn
import uvloop

from deploy.local.mail.faults import FaultPlan
from deploy.local.mail.inbox import make_inbox
from deploy.local.mail.settings import Settings, SettingsError, read_settings
from deploy.local.mail.smtp import listen
from deploy.local.mail.store import Store, StoreError


def main() -> int:
    # uvicorn stops on these signals, then raises them again: without this the exit code would say "killed".
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    try:
        settings = read_settings()
        store = Store(settings.store)
        uvloop.run(serve(settings, store))
    except (SettingsError, StoreError, OSError) as error:
        sys.stderr.write(f"mail sandbox: {error}\n")
        return 1
    store.close()
    return 0


async def serve(settings: Settings, store: Store) -> None:
    faults = FaultPlan()
    smtp = await listen(settings.host, settings.smtp_port, store, faults)
    inbox = uvicorn.Server(
        uvicorn.Config(
            make_inbox(store, faults),
            host=settings.host,
            port=settings.inbox_port,
            lifespan="off",
            access_log=False,
            server_header=False,
            log_level="warning",
            timeout_graceful_shutdown=5,
        )
    )
    print(f"mail sandbox: http://{settings.host}:{settings.inbox_port} SMTP {settings.smtp_port}", flush=True)
    await inbox.serve()
    smtp.close()


if __name__ == "__main__":
    sys.exit(main())
