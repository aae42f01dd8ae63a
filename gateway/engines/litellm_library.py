"""Imports LiteLLM when an engine needs it, and disables all features that engines do not need.

The import takes seconds, so it runs in a thread before the gateway listens. The settings concern the whole process:
LiteLLM sends only the calls of engines, and does not log, count, cache, retry or report.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import sys
import warnings
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import httpx

from gateway.engines.litellm_wire import AsyncWire, SyncWire, tls_context
from gateway.errors import StartupError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

# Environment variables that LiteLLM reads during its import. From 1.110 on the first one covers the others.
_BEFORE_IMPORT = {
    "LITELLM_OFFLINE_MODE": "true",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_LOCAL_ANTHROPIC_BETA_HEADERS": "true",
    "LITELLM_LOCAL_BLOG_POSTS": "true",
    "LITELLM_MODE": "PRODUCTION",  # otherwise LiteLLM reads a .env file
    "LITELLM_RUST": "false",  # the native part opens its own connections
}
_TIKTOKEN_FOLDER = "TIKTOKEN_CACHE_DIR"

_SWITCHES: dict[str, object] = {
    **dict.fromkeys(("telemetry", "set_verbose", "drop_params", "modify_params", "force_ipv4"), False),
    **dict.fromkeys(("cache", "model_fallbacks", "context_window_fallbacks", "default_fallbacks"), None),
    **dict.fromkeys(("suppress_debug_info", "turn_off_message_logging", "disable_streaming_logging"), True),
    **dict.fromkeys(("disable_hf_tokenizer_download", "disable_end_user_cost_tracking", "user_url_validation"), True),
    "disable_stop_sequence_limit": True,  # otherwise all stop strings after the fourth are dropped
    # LiteLLM must not invent counts: the gateway estimates missing counts and marks them as estimates.
    "disable_token_counter": True,
    "disable_add_prefix_to_prompt": True,  # otherwise Anthropic's replies repeat the prefill
    "REPEATED_STREAMING_CHUNK_LIMIT": sys.maxsize,  # otherwise the hundredth dash of a line is an error
    "num_retries": 0,
}
_UNAWAITED = r"coroutine '.*\.(acompletion|async_completion|async_streaming)\w*' was never awaited"
_LOGGERS = ("LiteLLM", "LiteLLM Proxy", "LiteLLM Router")
_CALLBACKS = (
    *("callbacks", "input_callback", "success_callback", "failure_callback", "service_callback"),
    *("_async_success_callback", "_async_failure_callback", "_async_input_callback"),
)


class LiteLLMLibrary(NamedTuple):
    """LiteLLM's `acompletion` and `atext_completion`, facts of a model, and providers with a text route.

    `parameters` returns None if they are not known. `missing_variables` returns the environment variables that the
    model's provider requires and this process lacks, or has without a value.
    """

    chat: Callable[..., Awaitable[Any]]
    text: Callable[..., Awaitable[Any]]
    parameters: Callable[[str], frozenset[str] | None]
    missing_variables: Callable[[str], list[str]]
    takes_text: frozenset[str]


async def load(models: Iterable[str] = ()) -> LiteLLMLibrary:
    """Import LiteLLM and its modules for `models` in a thread. Raises StartupError if the import fails."""

    def load_all() -> LiteLLMLibrary:
        library = _load()
        tls_context()
        for model in models:
            library.parameters(model)
        return library

    try:
        return await asyncio.to_thread(load_all)
    except (ImportError, AttributeError) as error:
        raise StartupError(
            f"LiteLLM cannot be imported ({type(error).__name__}: {error}). Install the version in the lock file."
        ) from error


@cache
def _load() -> LiteLLMLibrary:
    # Pydantic's warning about LiteLLM's types, at the first call of each provider.
    warnings.filterwarnings("ignore", "Items? .* using the `ReadOnly` qualifier", UserWarning)
    # Pydantic's warning about a reply of another shape, which quotes the reply.
    warnings.filterwarnings("ignore", "Pydantic serializer warnings", UserWarning)
    # A canceled call leaves the coroutine that LiteLLM's thread returns afterwards, which holds no connection.
    warnings.filterwarnings("ignore", _UNAWAITED, RuntimeWarning)
    folder = os.environ.get(_TIKTOKEN_FOLDER)
    os.environ.update(_BEFORE_IMPORT)
    try:
        litellm: Any = importlib.import_module("litellm")
        handlers: Any = importlib.import_module("litellm.llms.custom_httpx.http_handler")
        importlib.import_module("litellm.litellm_core_utils.default_encoding")
    finally:
        # The import sets the variable to LiteLLM's own encodings. Restore the gateway's value.
        if folder is None:
            os.environ.pop(_TIKTOKEN_FOLDER, None)
        else:
            os.environ[_TIKTOKEN_FOLDER] = folder
    for name, value in _SWITCHES.items():
        setattr(litellm, name, value)
    for name in _CALLBACKS:
        setattr(litellm, name, [])
    for name in _LOGGERS:  # their messages can contain prompts and answers
        logging.getLogger(name).disabled = True
    # Replace the transport of all HTTP clients that LiteLLM creates.
    wire, sync_wire = AsyncWire(), SyncWire()
    for name in ("create_async_transport", "_create_async_transport"):
        getattr(handlers.AsyncHTTPHandler, name)  # AttributeError in a version without it, which would bypass the wire
        setattr(handlers.AsyncHTTPHandler, name, staticmethod(lambda *_, **__: wire))
    litellm.sync_transport = sync_wire
    litellm.client_session = httpx.Client(transport=sync_wire, trust_env=False)

    @cache
    def parameters(model: str) -> frozenset[str] | None:
        name, provider, *_ = litellm.get_llm_provider(model=model)
        known = litellm.get_supported_openai_params(model=name, custom_llm_provider=provider)
        return None if known is None else frozenset(known)

    def missing_variables(model: str) -> list[str]:
        # LiteLLM counts an empty variable as set.
        empty = {name: value for name, value in os.environ.items() if not value.strip()}
        for name in empty:
            del os.environ[name]
        try:
            return list(litellm.validate_environment(model)["missing_keys"])
        finally:
            os.environ.update(empty)

    return LiteLLMLibrary(
        chat=litellm.acompletion,
        text=litellm.atext_completion,
        parameters=parameters,
        missing_variables=missing_variables,
        takes_text=frozenset({"openai", "azure", *litellm.openai_text_completion_compatible_providers}),
    )
