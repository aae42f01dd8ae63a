"""Routes of the callers' listener."""

from __future__ import annotations

from aiohttp import web

from gateway.api.completions import chat_completions, embeddings, text_completions
from gateway.api.feedback import add_feedback
from gateway.api.guidance import guidance, guidance_usage, offline_usage
from gateway.api.limits import show_limits
from gateway.api.lookups import openapi_json, show_receipt
from gateway.api.messages import count_tokens, messages
from gateway.api.models import list_models, show_model
from gateway.api.probes import healthz, readyz
from gateway.api.responses import responses
from gateway.api.stored_responses import delete_response, list_input_items, show_response
from gateway.api.usage import show_usage

ROUTES = [
    web.post("/v1/chat/completions", chat_completions),
    web.post("/v1/completions", text_completions),
    web.post("/v1/responses", responses),
    web.get("/v1/responses/{id}", show_response),
    web.delete("/v1/responses/{id}", delete_response),
    web.get("/v1/responses/{id}/input_items", list_input_items),
    web.post("/v1/messages", messages),
    web.post("/v1/messages/count_tokens", count_tokens),
    web.post("/v1/embeddings", embeddings),
    web.post("/v1/guidance", guidance),
    web.post("/v1/guidance/usage", offline_usage),
    web.post("/v1/guidance/{receipt}/usage", guidance_usage),
    web.get("/v1/models", list_models),
    web.get("/v1/models/{model:.+}", show_model),
    web.get("/v1/receipts/{id}", show_receipt),
    web.post("/v1/receipts/{id}/feedback", add_feedback),
    web.get("/v1/limits", show_limits),
    web.get("/v1/usage", show_usage),
    web.get("/healthz", healthz),
    web.get("/readyz", readyz),
    web.get("/openapi.json", openapi_json),
]
