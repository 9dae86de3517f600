"""Files in the run folder: written whole or not at all, private where they hold a key."""

import json
import os
from pathlib import Path

from deploy.local.errors import PlatformError

PRIVATE = 0o600


def prepare_folder(run_dir: Path) -> None:
    """Make the run folder and see that it can be written to."""
    try:
        run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        (run_dir / "logs").mkdir(exist_ok=True)
        write(run_dir / "writable", "")
        (run_dir / "writable").unlink()
    except OSError as error:
        raise PlatformError(f"Cannot write to {run_dir} ({error.strerror}): set RUN_DIR to another folder.") from error


def write(path: Path, text: str, mode: int = PRIVATE) -> None:
    """Replace the file in one step, so that nobody ever reads half of it."""
    draft = path.with_name(f".{path.name}.new")
    draft.unlink(missing_ok=True)
    draft.touch(mode=mode)
    draft.write_text(text)
    draft.replace(path)


class PidFile:
    """`pids.json`: which process each name is. A name that is being restarted keeps its last number."""

    def __init__(self, run_dir: Path) -> None:
        self.path = run_dir / "pids.json"
        self._pids: dict[str, int] = {}

    def record(self, name: str, pid: int) -> None:
        self._pids[name] = pid
        write(self.path, json.dumps(self._pids, indent=2) + "\n")

    def remove(self) -> None:
        self._pids.clear()
        self.path.unlink(missing_ok=True)


def read_pids(run_dir: Path) -> dict[str, int]:
    try:
        pids: dict[str, int] = json.loads((run_dir / "pids.json").read_text())
    except FileNotFoundError:
        return {}
    return pids


def is_alive(pid: int) -> bool:
    """Whether the process exists, whoever owns it."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
