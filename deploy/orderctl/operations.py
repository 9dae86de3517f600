"""A service's ops API, as `orderctl` calls it."""

import os
from collections.abc import Mapping
from typing import Any

import httpx

from deploy.orderctl.failures import Misconfigured, Refused, Unavailable

TIMEOUT_S = 15.0
CHECKOUT = "checkout"


def call(
    method: str,
    path: str,
    body: Mapping[str, object] | None = None,
    *,
    service: str = CHECKOUT,
    query: Mapping[str, str | None] | None = None,
) -> Any:  # noqa: ANN401 - JSON
    """What the service answers; None when there is nothing to say. What is None in `query` is left out."""
    url, key = _url(service), _key()
    wanted = {name: value for name, value in (query or {}).items() if value is not None}
    headers = {"Authorization": f"Bearer {key}"}
    try:
        answer = httpx.request(
            method, f"{url}{path}", params=wanted, json=body, headers=headers, timeout=TIMEOUT_S, trust_env=False
        )
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        reason = str(error) or type(error).__name__
        raise Unavailable(f"{service} at {url} does not answer: {reason}") from error
    if answer.is_success:
        return answer.json() if answer.content else None
    detail = f"{service}: {_detail(answer)}"
    raise Unavailable(detail) if answer.is_server_error else Refused(detail)


def _url(service: str) -> str:
    name = f"{service.upper().replace('-', '_')}_URL"
    url = _setting(name, f"where {service} answers")
    if not url.startswith(("http://", "https://")):
        raise Misconfigured(f"{name}: must start with http:// or https://")
    return url.rstrip("/")


def _key() -> str:
    key = _setting("OPS_KEY", "a key that opens ops")
    if not (key.isascii() and key.isprintable()):
        raise Misconfigured("OPS_KEY: is no key")
    return key


def _setting(name: str, meaning: str) -> str:
    """Read without the settings of the services, which take longer to import than all the rest of a command."""
    if value := os.environ.get(name):
        return value
    raise Misconfigured(f"{name} is not set: {meaning}")


def _detail(answer: httpx.Response) -> str:
    """A problem's own words; somebody else's answer, such as a proxy's, has none."""
    try:
        problem = answer.json()
        wrong = [f"{one['pointer'] or one['in']}: {one['detail']}" for one in problem.get("errors", ())]
        return "; ".join(wrong) or str(problem["detail"])
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"answered {answer.status_code}"
