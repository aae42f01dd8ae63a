"""Measure the gateway: Prometheus metrics, JSON logs and OpenTelemetry traces."""
