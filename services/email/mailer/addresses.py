from __future__ import annotations

from email_validator import EmailNotValidError, validate_email


class NoSuchAddress(ValueError):
    """No mail server would take it."""


def deliverable(address: str) -> str:
    """The address in ASCII, as every mail server understands it; raises `NoSuchAddress`."""
    try:
        # Whether a domain exists is the mail server's business; reserved names are somebody's test.
        checked = validate_email(address, check_deliverability=False, globally_deliverable=False, allow_smtputf8=False)
    except EmailNotValidError as error:
        raise NoSuchAddress(f"not an address that mail can be sent to: {error}") from error
    if checked.ascii_email is None:
        raise NoSuchAddress("the part before the @ is not ASCII")
    return checked.ascii_email
