from __future__ import annotations

from alembic import context

from services.warehouse.store import tables
from shared.bus.ledger import ledger_tables
from shared.runtime.migrations import run_from_environment

run_from_environment([ledger_tables, tables], context)
