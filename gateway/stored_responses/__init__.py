"""Responses of /v1/responses, stored for follow-ups."""
