"""A wrong setting ends the process with one line that names it, and with no secret in it."""

from pathlib import Path

import pytest

from services.checkout.settings import CheckoutSettings
from shared.runtime.settings import EX_CONFIG, load

GOOD = {
    "CHECKOUT_PORT": "8001",
    "CHECKOUT_DATABASE_URL": "postgresql://checkout:hunter2@localhost:5432/checkout",
    "CHECKOUT_REDIS_URL": "redis://localhost:6379",
    "CHECKOUT_PAYMENTS_URL": "http://localhost:9000/",
    "CHECKOUT_PAYMENTS_SECRET_KEY": "sk_test_hunter2",
}

WRONG = {
    "CHECKOUT_PORT": ["", "http", "0", "65536", "8001.5", "-1"],
    "CHECKOUT_DATABASE_URL": [
        "",
        "mysql://checkout:hunter2@localhost/checkout",
        "checkout:hunter2@localhost",
        "postgresql://checkout:hunter2@localhost:port/checkout",
        "postgresql://checkout:hunter2@localhost:99999/checkout",
    ],
    "CHECKOUT_MIGRATOR_DATABASE_URL": ["sqlite:///hunter2.db", "postgresql://a:hunter2@localhost:x/b"],
    "CHECKOUT_REDIS_URL": ["", "localhost:6379", "http://:hunter2@localhost", "redis://:hunter2@localhost:port"],
    "CHECKOUT_DATABASE_POOL_SIZE": ["1", "201", "many"],
    "CHECKOUT_CONSUMER_NAME": ["", "x" * 201],
    "CHECKOUT_LOG_FORMAT": ["xml", ""],
    "CHECKOUT_LOG_LEVEL": ["INFO!", "trace"],
    "CHECKOUT_DOCS_ENABLED": ["perhaps"],
    "CHECKOUT_DRAIN_S": ["-1", "61", "soon", "nan"],
    "CHECKOUT_PAYMENTS_URL": ["localhost:9000", ""],
    "CHECKOUT_PAYMENTS_TIMEOUT_S": ["0", "21"],
    "CHECKOUT_PARTITIONS": ["0", "1025"],
    "CHECKOUT_RECONCILE_EVERY_S": ["0", "86401"],
}


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in GOOD.items():
        monkeypatch.setenv(name, value)


def test_good_settings_are_read_with_their_defaults() -> None:
    settings = load(CheckoutSettings)

    assert (settings.host, settings.port, settings.log_format, settings.docs_enabled) == (
        "127.0.0.1",
        8001,
        "json",
        True,
    )
    assert settings.database_url.get_secret_value() == GOOD["CHECKOUT_DATABASE_URL"]
    assert settings.payments_url == "http://localhost:9000"
    assert settings.ops_keys == ()
    assert settings.consumer_name


@pytest.mark.parametrize("name", sorted(GOOD))
def test_a_missing_setting_is_named(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(name)

    assert _complaint(capsys) == f"configuration: {name} is not set"


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_a_wrong_setting_is_named_in_one_line_without_its_value(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(name, value)

    complaint = _complaint(capsys)

    assert complaint.startswith(f"configuration: {name}: ")
    assert "hunter2" not in complaint


def test_everything_that_is_wrong_is_said_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("CHECKOUT_PORT")
    monkeypatch.setenv("CHECKOUT_LOG_FORMAT", "xml")

    complaint = _complaint(capsys)

    assert "CHECKOUT_PORT is not set; " in complaint
    assert "CHECKOUT_LOG_FORMAT: " in complaint


def test_keys_are_a_list_with_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHECKOUT_OPS_KEYS", " one, two ,,")

    assert [key.get_secret_value() for key in load(CheckoutSettings).ops_keys] == ["one", "two"]


def test_no_secret_is_shown_when_settings_are_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHECKOUT_OPS_KEYS", "hunter2")
    monkeypatch.setenv("CHECKOUT_SEED_OPS_KEY", "hunter2")

    assert "hunter2" not in repr(load(CheckoutSettings))


def test_a_secret_may_come_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CHECKOUT_PAYMENTS_SECRET_KEY")
    monkeypatch.setenv("CHECKOUT_SECRETS_DIR", str(tmp_path))
    (tmp_path / "checkout_payments_secret_key").write_text("from a file\n")

    assert load(CheckoutSettings).payments_secret_key.get_secret_value() == "from a file"


def test_a_folder_of_secrets_that_is_none_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CHECKOUT_SECRETS_DIR", str(tmp_path / "none"))

    assert _complaint(capsys) == f"configuration: CHECKOUT_SECRETS_DIR: {tmp_path / 'none'} is not a directory"


def _complaint(capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as end:
        load(CheckoutSettings)
    assert end.value.code == EX_CONFIG == 78
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize("secrets", ["whsec_new,whsec_old", " whsec_new , whsec_old,"])
def test_two_webhook_secrets_may_be_in_use_and_may_come_from_a_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, secrets: str
) -> None:
    (tmp_path / "checkout_payments_webhook_secret").write_text(secrets)
    monkeypatch.setenv("CHECKOUT_SECRETS_DIR", str(tmp_path))
    from_file = load(CheckoutSettings).payments_webhook_secret
    monkeypatch.delenv("CHECKOUT_SECRETS_DIR")
    monkeypatch.setenv("CHECKOUT_PAYMENTS_WEBHOOK_SECRET", secrets)

    settings = load(CheckoutSettings)

    assert [one.get_secret_value() for one in settings.payments_webhook_secret] == ["whsec_new", "whsec_old"]
    assert from_file == settings.payments_webhook_secret
    assert "whsec" not in repr(settings)
