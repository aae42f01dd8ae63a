"""Migrations of the usage database by Alembic. `gateway.usage.engine.migrate` applies them."""
