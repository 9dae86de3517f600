"""What a machine may lack."""


class Absent(Exception):
    """The machine has no such server. The text is one line that says how to get it."""
