"""`python -m deploy.local run|up|down|reset|status|demo`."""

import argparse
import os
import sys

from deploy.local import commands, demo, settings
from deploy.local.errors import PlatformError

COMMANDS = {
    "up": commands.up,
    "down": commands.down,
    "reset": commands.reset,
    "status": commands.status,
    "demo": demo.show,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m deploy.local", description="The local platform.")
    parser.add_argument("command", choices=("run", *COMMANDS))
    parser.add_argument("--report", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    try:
        wanted = settings.read()
        if arguments.command == "run":
            commands.run(wanted, arguments.report)
        else:
            COMMANDS[arguments.command](wanted)
    except PlatformError as error:
        _complain(str(error), arguments.report)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _complain(text: str, report: int | None) -> None:
    print(text, file=sys.stderr)
    if report is not None:
        os.write(report, text.encode())


if __name__ == "__main__":
    sys.exit(main())
