from __future__ import annotations

from pathlib import Path

from services.email.app import build
from services.email.settings import EmailSettings
from shared.runtime.process import Entry

entry = Entry("email", EmailSettings, build, Path(__file__).with_name("migrations"))

if __name__ == "__main__":
    entry.main()
