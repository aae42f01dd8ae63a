"""The admin listener, loopback by default: metrics, readiness in detail, and the admin API, which asks for a key."""
