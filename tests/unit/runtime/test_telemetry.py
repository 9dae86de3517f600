"""What must not reach a log does not, wherever in a line it stands."""

import json
import logging
import re
from collections.abc import Iterator

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from shared.runtime.telemetry import configure, redact

CARD = "4242 4242 4242 4242"


@pytest.fixture
def _own_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield
    root.handlers = handlers
    root.setLevel(level)
    structlog.reset_defaults()


@pytest.mark.parametrize(
    "name",
    [
        "password",
        "DB_PASSWORD",
        "client_secret",
        "token",
        "Authorization",
        "api_key",
        "payment_method",
        "email",
        "card",
    ],
)
@pytest.mark.parametrize("value", ["hunter2", 42, None, ["hunter2"], {"a": "hunter2"}])
def test_a_value_under_a_telling_name_is_blanked(name: str, value: object) -> None:
    assert _redacted(**{name: value}) == {name: "[redacted]"}


@pytest.mark.parametrize("card", ["4242424242424242", CARD, "4242-4242-4242-4242", "378282246310005"])
def test_a_card_number_is_blanked_in_any_text(card: str) -> None:
    assert _redacted(event=f"the client sent {card} as name") == {"event": "the client sent [redacted] as name"}


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://checkout:hunter2@db:5432/checkout", "postgresql://[redacted]@db:5432/checkout"),
        ("redis://:hunter2@cache", "redis://[redacted]@cache"),
        ("postgresql://checkout:hunt@er2@db/checkout", "postgresql://[redacted]@db/checkout"),
        ("http://localhost:9000/v1", "http://localhost:9000/v1"),
    ],
)
def test_credentials_in_a_url_are_blanked(url: str, shown: str) -> None:
    assert _redacted(error=f"cannot reach {url}, giving up") == {"error": f"cannot reach {shown}, giving up"}


@pytest.mark.parametrize("prefix", ["osk_", "sk_test_", "whsec_"])
def test_a_key_is_known_by_its_beginning_wherever_it_stands(prefix: str) -> None:
    key = prefix + "aB3-_x" * 6

    assert _redacted(error=f"refused '{key}', try another") == {"error": "refused '[redacted]', try another"}


def test_nothing_hides_inside_a_list_or_a_dictionary() -> None:
    line = _redacted(
        order={"customer": {"email": "ann@example.com", "name": "Ann"}, "notes": [CARD, 5]},
        urls=("redis://:hunter2@cache",),
    )

    assert line == {
        "order": {"customer": {"email": "[redacted]", "name": "Ann"}, "notes": ["[redacted]", 5]},
        "urls": ("redis://[redacted]@cache",),
    }


def test_what_a_line_was_given_is_not_changed() -> None:
    customer = {"email": "ann@example.com"}

    _redacted(customer=customer)

    assert customer == {"email": "ann@example.com"}


def test_ids_amounts_and_times_stay_readable() -> None:
    line = {
        "order_id": "ord_01kjpvakkjetkbp2wcpwrdgcd6",
        "event_id": "019cadb5-51f6-7b60-8c05-38e4e3019da5",
        "amount": 1999,
        "timestamp": "2026-03-02T08:41:07.318204Z",
        "loop": "relay-email-0",
    }

    assert _redacted(**line) == line


@given(st.dictionaries(st.sampled_from(["event", "error", "detail"]), st.text(), max_size=3))
def test_no_text_breaks_the_log(line: dict[str, str]) -> None:
    assert _redacted(**line).keys() == line.keys()


@pytest.mark.usefixtures("_own_logging")
def test_a_line_of_our_own_and_of_a_library_are_both_json_and_both_redacted(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure("checkout", form="json", level="info")

    structlog.get_logger().warning("refused", email="ann@example.com", order_id="ord_1")
    logging.getLogger("a.library").warning("cannot reach %s", "redis://:hunter2@cache")
    structlog.get_logger().error("failed", exc_info=ValueError(CARD))
    structlog.get_logger().debug("not shown")

    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [line["event"] for line in lines] == ["refused", "cannot reach redis://[redacted]@cache", "failed"]
    assert all(line["service"] == "checkout" and line["timestamp"].endswith("Z") for line in lines)
    assert lines[0]["email"] == "[redacted]"
    assert lines[2]["exception"].endswith("ValueError: [redacted]")


@pytest.mark.usefixtures("_own_logging")
def test_a_stack_trace_on_a_terminal_is_redacted_too(capsys: pytest.CaptureFixture[str]) -> None:
    configure("checkout", form="console", level="info")

    structlog.get_logger().error("failed", exc_info=ValueError(CARD))

    shown = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().err)
    assert "failed" in shown
    assert CARD not in shown


def _redacted(**line: object) -> dict[str, object]:
    return dict(redact(None, "info", dict(line)))
