from __future__ import annotations

from alembic import context

from services.checkout.store.tables import metadata
from shared.bus.log import log_tables
from shared.runtime.migrations import run_from_environment

run_from_environment([metadata, log_tables], context)
