"""Helpers for asyncio and the process."""
