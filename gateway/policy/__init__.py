"""Policies: callers, their routes, and the guidance of each route."""
