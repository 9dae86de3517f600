"""The process of a service starts without delay, and says in one line what is wrong with its configuration."""

import subprocess
import sys
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from pydantic_settings import SettingsConfigDict

from shared.runtime import telemetry
from shared.runtime.errors import ConfigurationError
from shared.runtime.process import Entry, Service
from shared.runtime.settings import EX_CONFIG, ServiceSettings


class ShopSettings(ServiceSettings):
    model_config = SettingsConfigDict(env_prefix="SHOP_", extra="ignore")


async def build(_: ShopSettings, __: AsyncExitStack) -> Service:
    raise AssertionError("nothing is to be served")


async def seed(_: ShopSettings) -> None:
    raise ConfigurationError("SHOP_SEED_API_KEY is not set")


def test_a_command_that_lacks_a_setting_says_so_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SHOP_PORT", "8000")
    monkeypatch.setenv("SHOP_DATABASE_URL", "postgresql://shop@127.0.0.1/shop")
    monkeypatch.setenv("SHOP_REDIS_URL", "redis://127.0.0.1")
    monkeypatch.setattr(sys, "argv", ["shop", "seed"])
    monkeypatch.setattr(telemetry, "configure", lambda *_, **__: None)  # this process keeps its own logs

    with pytest.raises(SystemExit) as ended:
        Entry("shop", ShopSettings, build, Path(), {"seed": seed}).main()

    assert ended.value.code == EX_CONFIG
    assert capsys.readouterr().err == "configuration: SHOP_SEED_API_KEY is not set\n"


@pytest.mark.parametrize("service", ["checkout", "email", "analytics", "warehouse"])
def test_whoever_serves_does_not_import_what_only_migrations_need(service: str) -> None:
    """Others wait for each start again of a process that died."""
    code = f"import sys, services.{service}.__main__; sys.exit('alembic' in sys.modules)"

    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)

    assert (done.returncode, done.stderr) == (0, "")
