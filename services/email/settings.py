from __future__ import annotations

from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import SettingsConfigDict

from shared.runtime.settings import ServiceSettings

SCHEMES = ("smtp", "smtp+starttls", "smtps")


class EmailSettings(ServiceSettings):
    """Settings of email, read from `EMAIL_*`."""

    model_config = SettingsConfigDict(env_prefix="EMAIL_", extra="ignore")

    smtp_url: SecretStr = Field(
        description="smtp://[user:password@]host:port; smtps:// and smtp+starttls:// insist on TLS"
    )
    from_address: str = Field(description="the sender's address", max_length=254)
    from_name: str = Field("Orderstream", description="the sender's name, as readers see it", max_length=100)
    smtp_connections: int = Field(16, ge=1, le=100, description="connections to the mail server at the most")
    max_rate: float = Field(100.0, gt=0, le=10_000, description="mails per second at the most, also after an outage")

    @field_validator("smtp_url")
    @classmethod
    def _is_smtp(cls, value: SecretStr) -> SecretStr:
        parts = urlsplit(value.get_secret_value())
        if parts.scheme not in SCHEMES or not parts.hostname:
            raise ValueError("must be smtp://host:port, smtps://host:port or smtp+starttls://host:port")
        return value

    @field_validator("from_address")
    @classmethod
    def _is_address(cls, value: str) -> str:
        local, at, domain = value.rpartition("@")
        if not (local and at and domain) or not value.isascii() or any(c.isspace() for c in value):
            raise ValueError("must be an e-mail address")
        return value

    @property
    def domain(self) -> str:
        """What our Message-IDs end with."""
        return self.from_address.rpartition("@")[2]
