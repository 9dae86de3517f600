"""Become another program that dies with its parent: `python tether.py PARENT SIGNAL USER SHARE COMMAND…`.

The parent-death signal is lost when a process changes its user or namespace, so it is set here, as the last
step before the program starts. USER is `-`, or whom to become first; SHARE is `full`, `first` for a program
that goes before all others, or `rest` for one that takes what is left of the processors. It is run by its path alone.
"""

import contextlib
import ctypes
import os
import pwd
import signal
import sys
from pathlib import Path

PR_SET_PDEATHSIG = 1


def main() -> None:
    parent, number, user, share, *command = sys.argv[1:]
    if share == "first":
        _step_forward()
    elif share == "rest":
        _step_back()
    if user != "-":
        _become(pwd.getpwnam(user))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.Signals[number].value, 0, 0, 0)
    # The parent may have died before the signal was asked for.
    if os.getppid() != int(parent):
        sys.exit(1)
    os.execvp(command[0], command)  # noqa: S606 - becoming another program is what this is for


def _step_forward() -> None:
    """Go before the others, where that is allowed: an ordinary user may not."""
    with contextlib.suppress(OSError):
        os.nice(-10)
    _be_nice_as_a_group(-10)


def _step_back() -> None:
    """Give way at once to whoever has something to do, not only at the end of a time slice as `nice` would."""
    if hasattr(os, "SCHED_IDLE"):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    else:
        os.nice(10)
    _be_nice_as_a_group(10)


def _be_nice_as_a_group(niceness: int) -> None:
    # Where every session has a group of its own (sched_autogroup), policies count inside that group only, and between
    # groups it is the group's niceness that does: https://man7.org/linux/man-pages/man7/sched.7.html
    with contextlib.suppress(OSError):
        Path("/proc/self/autogroup").write_text(str(niceness))


def _become(user: pwd.struct_passwd) -> None:
    os.setgroups([])
    os.setgid(user.pw_gid)
    os.setuid(user.pw_uid)


if __name__ == "__main__":
    main()
