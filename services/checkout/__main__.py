"""The process of checkout."""

from __future__ import annotations

from pathlib import Path

from services.checkout.app import NAME, build, seed
from services.checkout.settings import CheckoutSettings
from shared.runtime.process import Entry

if __name__ == "__main__":
    Entry(NAME, CheckoutSettings, build, Path(__file__).parent / "migrations", {"seed": seed}).main()
