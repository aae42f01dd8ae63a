"""Apply migrations within the caller's transaction. Alembic runs this file for each command."""

from __future__ import annotations

from alembic import context

from gateway.usage.engine import VERSION_TABLE
from gateway.usage.tables import METADATA

context.configure(
    connection=context.config.attributes["connection"], target_metadata=METADATA, version_table=VERSION_TABLE
)
context.run_migrations()
