"""Who is calling: bearer keys, and what they open."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, Protocol
from urllib.parse import urlsplit

from fastapi.openapi.models import HTTPBearer as HTTPBearerModel
from fastapi.security.base import SecurityBase
from starlette.requests import Request
from typing_extensions import override

from shared.web.context import ANSWER_HEADERS
from shared.web.limits import Quota
from shared.web.problems import Problem

if TYPE_CHECKING:
    from shared.runtime.settings import ServiceSettings

OPS = "ops"
EVERYTHING_ELSE = "*"  # every scope but OPS
_LONGEST_KEY = 200
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


@dataclass(frozen=True, slots=True)
class Principal:
    """A caller that was recognised. `key_id` names the key without giving it away; no `quota` is no limit."""

    tenant: str
    scopes: frozenset[str]
    key_id: str
    quota: Quota | None = None

    def may(self, scope: str) -> bool:
        """Whether the key opens `scope`."""
        return scope in self.scopes or (scope != OPS and EVERYTHING_ELSE in self.scopes)


class KeyStore(Protocol):
    """Where keys are looked up."""

    async def find(self, key: str) -> Principal | None:
        """Whose key it is, or None."""
        ...


class SettingsKeys(KeyStore):
    """The keys in a service's settings: ops keys open everything, api keys everything but ops."""

    def __init__(self, settings: ServiceSettings) -> None:
        """Keep digests only."""
        both = frozenset({OPS, EVERYTHING_ELSE})
        self._known = [(digest(key.get_secret_value()), "ops", both) for key in settings.ops_keys]
        self._known += [
            (digest(key.get_secret_value()), "api", frozenset({EVERYTHING_ELSE})) for key in settings.api_keys
        ]

    @override
    async def find(self, key: str) -> Principal | None:
        found = None
        sent = digest(key)
        for known, kind, scopes in self._known:  # all of them, whichever fits: the time must not tell
            if hmac.compare_digest(known, sent):
                found = Principal(kind, scopes, f"{kind}-{known.hex()[:8]}")
        return found


def digest(key: str) -> bytes:
    """What is kept of a key. Keys are 256 random bits, so one round of SHA-256 is enough."""
    return hashlib.sha256(key.encode("utf-8", "replace")).digest()


class Requirement(SecurityBase):
    """A FastAPI dependency that lets callers with a scope through and returns who they are."""

    def __init__(self, scope: str) -> None:
        """Require `scope`."""
        self.model = HTTPBearerModel(description="An API key")
        self.scheme_name = "key"
        self.scope = scope

    async def __call__(self, request: Request) -> Principal:
        """The caller; raises 401, 403 or 429 as a problem."""
        kind, key = _credentials(request.headers.get("authorization", ""))
        principal = await request.app.state.keys.find(key) if 0 < len(key) <= _LONGEST_KEY else None
        if principal is None:
            raise _unauthenticated(request)
        if principal.quota is not None and self.scope != OPS:  # people on call are never locked out
            _count(request, principal.key_id, principal.quota)
        if not principal.may(self.scope):
            raise Problem(403, "forbidden", detail=f"The key does not open {self.scope}.")
        if kind == "basic" and request.method not in _SAFE_METHODS and not _same_origin(request):
            # A browser adds Basic credentials to whatever any site posts here (but never a bearer key).
            raise Problem(403, "cross_site", detail="The form was not sent from this site.")
        return principal  # type: ignore[no-any-return]  # app.state has no types


def require(scope: str) -> Requirement:
    """What routes depend on: `caller: Annotated[Principal, Depends(require("orders:read"))]`."""
    return Requirement(scope)


def _count(request: Request, key_id: str, quota: Quota) -> None:
    wait_s, request.scope[ANSWER_HEADERS] = request.app.state.limits.take(key_id, quota)
    if wait_s:
        retry_after = {"Retry-After": str(ceil(wait_s))}
        detail = (
            f"This key may make {quota.rate:g} requests per second, {quota.burst} at once. Nothing was done: repeat."
        )
        raise Problem(429, "rate_limited", detail=detail, headers=retry_after)


def _credentials(header: str) -> tuple[str, str]:
    kind, _, rest = header.partition(" ")
    if kind.lower() == "bearer":
        return "bearer", rest.strip()
    if kind.lower() == "basic":
        try:
            _, _, password = base64.b64decode(rest, validate=True).decode().partition(":")
        except (binascii.Error, ValueError):
            return "basic", ""
        return "basic", password
    return "", ""


def _unauthenticated(request: Request) -> Problem:
    browser = "text/html" in request.headers.get("accept", "")
    challenge = 'Basic realm="Orderstream", charset="UTF-8"' if browser else 'Bearer realm="Orderstream"'
    return Problem(
        401,
        "unauthenticated",
        detail="Send a valid key: Authorization: Bearer <key>.",
        headers={"WWW-Authenticate": challenge},
    )


def _same_origin(request: Request) -> bool:
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        return site in {"same-origin", "none"}
    origin = request.headers.get("origin")
    return origin is None or urlsplit(origin).netloc == request.headers.get("host")
