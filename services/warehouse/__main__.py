"""The process of warehouse."""

from __future__ import annotations

from pathlib import Path

from services.warehouse.app import NAME, build
from services.warehouse.settings import WarehouseSettings
from shared.runtime.process import Entry

MIGRATIONS = Path(__file__).parent / "migrations"

if __name__ == "__main__":
    Entry(NAME, WarehouseSettings, build, MIGRATIONS).main()
