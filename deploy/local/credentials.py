"""Keys and passwords of one run folder: random, made once, kept in a private file."""

import json
import secrets
from dataclasses import asdict, dataclass, field
from pathlib import Path

from deploy.local.errors import PlatformError
from deploy.local.files import write
from deploy.local.settings import SERVICES


def _token() -> str:
    return secrets.token_urlsafe(32)


def _passwords() -> dict[str, str]:
    return {role: _token() for name in SERVICES for role in (name, f"{name}_migrator")}


@dataclass(frozen=True)
class Credentials:
    api_key: str = field(default_factory=_token)
    ops_key: str = field(default_factory=_token)
    payments_key: str = field(default_factory=lambda: f"sk_test_{secrets.token_hex(24)}")
    webhook_secret: str = field(default_factory=lambda: f"whsec_{secrets.token_hex(24)}")
    superuser_password: str = field(default_factory=_token)
    role_passwords: dict[str, str] = field(default_factory=_passwords)


def load(run_dir: Path) -> Credentials:
    """What the run folder has, or new ones on its first use."""
    path = run_dir / "secrets.json"
    if not path.exists():
        write(path, json.dumps(asdict(Credentials()), indent=2) + "\n")
    try:
        return Credentials(**json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise PlatformError(f"{path} is damaged: make reset deletes it and the data it belongs to.") from error
