"""How a command fails: with one line, and an exit code that a script can tell apart."""


class Refused(Exception):
    """It will not be done; the text is the reason."""

    code = 1


class Unavailable(Exception):
    """Whom it takes does not answer, or is in no state to."""

    code = 69  # sysexits.h: EX_UNAVAILABLE


class Misconfigured(Exception):
    """The environment does not say what is needed."""

    code = 78  # sysexits.h: EX_CONFIG
