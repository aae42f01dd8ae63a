"""A 404 names the endpoint that was probably meant, and all endpoints of the listener."""

from __future__ import annotations

import pytest

from gateway.admin.routes import ROUTES as ADMIN_ROUTES
from gateway.api.not_found import Endpoints
from gateway.api.routes import ROUTES

PUBLIC = Endpoints(ROUTES)
LISTED = PUBLIC.not_found("GET", "/").removeprefix("There is no GET / here. This listener has ")
CHAT = "POST /v1/chat/completions"


def test_every_endpoint_is_listed_once() -> None:
    endpoints = LISTED.removesuffix(".").split(", ")
    assert {CHAT, "GET /v1/models", "GET /v1/models/{model}", "GET /v1/receipts/{id}", "GET /healthz"} <= set(endpoints)
    assert len(endpoints) == len(set(endpoints)) == len({route.path for route in ROUTES})


@pytest.mark.parametrize("endpoints", [PUBLIC, Endpoints(ADMIN_ROUTES)])
def test_the_message_is_bounded(endpoints: Endpoints) -> None:
    message = endpoints.not_found("POST", "/x" * 5_000)
    assert message.startswith("There is no POST " + "/x" * 50 + "... here. This listener has ")
    assert len(message) < 1_500


@pytest.mark.parametrize(
    ("path", "endpoint"),
    [
        ("/chat/completions", CHAT),
        ("/v1/chat/completions/", CHAT),
        ("/v1/v1/chat/completions", CHAT),
        ("//v1//chat/completions", CHAT),
        ("/V1/Chat/Completions", CHAT),
        ("/openai/v1/chat/completions", CHAT),
        ("/api/v1/chat/completions", CHAT),
        ("/openai/deployments/gpt/chat/completions", CHAT),
        ("/v1/chat/completions/v1/completions", "POST /v1/completions"),
        ("/v1/engines/gpt/completions", "POST /v1/completions"),
        ("/completions", "POST /v1/completions"),
        ("/embeddings", "POST /v1/embeddings"),
        ("/models", "GET /v1/models"),
        ("/v1/models/", "GET /v1/models"),
        ("/v1/healthz", "GET /healthz"),
        ("/v1/openapi.json", "GET /openapi.json"),
    ],
)
def test_a_common_mistake_gets_the_right_path(path: str, endpoint: str) -> None:
    expected = f"There is no POST {path} here. Did you mean {endpoint}? This listener has {LISTED}"
    assert PUBLIC.not_found("POST", path) == expected


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/v1/assistants", "assistants"),
        ("/v1/threads/thread_1/messages", "threads"),
        ("/v1/fine_tuning/jobs", "fine_tuning"),
        ("/generate", "generate"),
    ],
)
def test_an_api_that_is_not_offered_is_named(path: str, name: str) -> None:
    message = PUBLIC.not_found("GET", path)
    assert message == f"There is no GET {path} here. The gateway does not offer '{name}'. This listener has {LISTED}"


@pytest.mark.parametrize("path", ["/", "", "*", "/v1", "/v1/chat", "/v2/nothing", "/x\0", "/" * 8_000])
def test_other_paths_get_the_list_alone(path: str) -> None:
    assert f" here. This listener has {LISTED}" in PUBLIC.not_found("GET", path)
