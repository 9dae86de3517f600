"""At most one launcher per run folder: a lock that the kernel releases however its holder ends."""

import fcntl
import os
from pathlib import Path


class RunLock:
    """Held from `acquire` to the end of the process, or to `release`."""

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / "lock"
        self._descriptor = -1

    def acquire(self) -> bool:
        """Take the lock and write our process id into it; False when somebody has it."""
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        os.ftruncate(descriptor, 0)
        os.write(descriptor, str(os.getpid()).encode())
        self._descriptor = descriptor
        return True

    def release(self) -> None:
        os.close(self._descriptor)
        self._descriptor = -1

    def holder(self) -> int | None:
        """Whose it is, without taking it; None when it is free."""
        try:
            descriptor = os.open(self._path, os.O_RDONLY)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return int(os.read(descriptor, 32) or 0)
        finally:
            os.close(descriptor)
        return None
