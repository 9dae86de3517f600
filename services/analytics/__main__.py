"""The process of analytics."""

from __future__ import annotations

from pathlib import Path

from services.analytics.app import NAME, build
from services.analytics.settings import AnalyticsSettings
from shared.runtime.process import Entry

if __name__ == "__main__":
    Entry(NAME, AnalyticsSettings, build, Path(__file__).parent / "migrations").main()
