"""Checkout's ops API, as `orderctl` calls it."""

from collections.abc import Mapping
from typing import Any

import httpx
from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from shared.runtime.settings import load

TIMEOUT_S = 15.0


class OperatorSettings(BaseSettings):
    """Whom to ask, and with which key: the names of the local platform's `env`."""

    model_config = SettingsConfigDict(extra="ignore")

    checkout_url: str = Field(description="where checkout answers")
    ops_key: SecretStr = Field(description="a key with the scope ops")

    @field_validator("checkout_url")
    @classmethod
    def _is_http(cls, value: str) -> str:
        if not value.startswith(("http://", "https://")):
            raise ValueError("must start with http:// or https://")
        return value.rstrip("/")

    @field_validator("ops_key")
    @classmethod
    def _fits_a_header(cls, value: SecretStr) -> SecretStr:
        key = value.get_secret_value()
        if not (key.isascii() and key.isprintable()):
            raise ValueError("is no key")
        return value


class Refused(Exception):
    """Checkout will not do it; the text is its reason."""


class Unavailable(Exception):
    """Checkout does not answer, or is in no state to."""


def call(method: str, path: str, body: Mapping[str, object] | None = None) -> Any:  # noqa: ANN401 - JSON
    """What checkout answers; None when there is nothing to say."""
    settings = load(OperatorSettings)
    headers = {"Authorization": f"Bearer {settings.ops_key.get_secret_value()}"}
    try:
        answer = httpx.request(
            method, f"{settings.checkout_url}{path}", json=body, headers=headers, timeout=TIMEOUT_S, trust_env=False
        )
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        reason = str(error) or type(error).__name__
        raise Unavailable(f"checkout at {settings.checkout_url} does not answer: {reason}") from error
    if answer.is_success:
        return answer.json() if answer.content else None
    detail = _detail(answer)
    raise Unavailable(detail) if answer.is_server_error else Refused(detail)


def _detail(answer: httpx.Response) -> str:
    """A problem's own words; somebody else's answer, such as a proxy's, has none."""
    try:
        problem = answer.json()
        wrong = [f"{one['pointer'] or one['in']}: {one['detail']}" for one in problem.get("errors", ())]
        return "; ".join(wrong) or str(problem["detail"])
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"checkout answered {answer.status_code}"
