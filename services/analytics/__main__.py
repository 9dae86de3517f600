"""The process of analytics."""

from __future__ import annotations

from pathlib import Path

from services.analytics.app import NAME, build
from services.analytics.settings import AnalyticsSettings
from shared.runtime.process import Entry

MIGRATIONS = Path(__file__).parent / "migrations"

if __name__ == "__main__":
    Entry(NAME, AnalyticsSettings, build, MIGRATIONS).main()
