"""The process of email."""

from __future__ import annotations

from pathlib import Path

from services.email.app import NAME, build
from services.email.settings import EmailSettings
from shared.runtime.process import Entry

MIGRATIONS = Path(__file__).parent / "migrations"

if __name__ == "__main__":
    Entry(NAME, EmailSettings, build, MIGRATIONS).main()
