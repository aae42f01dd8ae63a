"""The admin listener, loopback by default: metrics, and readiness in detail."""
