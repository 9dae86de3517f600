"""Become another program that dies with its parent: `python tether.py PARENT SIGNAL USER NICE COMMAND…`.

The parent-death signal is lost when a process changes its user or namespace, so it is set here, as the last
step before the program starts. USER is `-`, or whom to become first; NICE is added to the priority number. It is run by its path alone.
"""

import ctypes
import os
import pwd
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    parent, number, user, nice, *command = sys.argv[1:]
    os.nice(int(nice))
    if user != "-":
        _become(pwd.getpwnam(user))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.Signals[number].value, 0, 0, 0)
    # The parent may have died before the signal was asked for.
    if os.getppid() != int(parent):
        sys.exit(1)
    os.execvp(command[0], command)  # noqa: S606 - becoming another program is what this is for


def _become(user: pwd.struct_passwd) -> None:
    os.setgroups([])
    os.setgid(user.pw_gid)
    os.setuid(user.pw_uid)


if __name__ == "__main__":
    main()
