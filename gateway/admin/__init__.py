"""The admin listener, loopback by default: metrics, detailed readiness, the dashboard, and an admin API with a key."""
