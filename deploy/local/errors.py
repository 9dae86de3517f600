"""What the local platform says when it cannot go on."""


class PlatformError(Exception):
    """What went wrong, in one line that says what to do."""
