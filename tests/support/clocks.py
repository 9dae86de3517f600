"""A clock that is wrong, for a process of its own."""

import ctypes
import gc
import time
from datetime import datetime, timedelta, tzinfo


def go_wrong(seconds: float) -> None:
    """From now on this process believes that it is so much later, or earlier; what it measures passes as before."""
    if not seconds:
        return
    right, right_ns, right_now = time.time, time.time_ns, datetime.now

    def now(_: type[datetime], tz: tzinfo | None = None) -> datetime:
        return right_now(tz) + timedelta(seconds=seconds)

    time.time = lambda: right() + seconds
    time.time_ns = lambda: right_ns() + int(seconds * 1e9)
    # A subclass would only be met by who imports it, and a class in C takes no other method: its own dictionary does.
    [methods] = gc.get_referents(datetime.__dict__)
    methods["now"] = classmethod(now)
    ctypes.pythonapi.PyType_Modified(ctypes.py_object(datetime))
