"""LiteLLM itself: imported when an engine needs it, with everything off that an engine does not need.

The import takes seconds, so it is done in a thread before the gateway listens. It sets switches of the whole process:
no call is made but the engines' own, nothing is logged, counted, cached, retried or sent to anybody else.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import sys
import warnings
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import httpx

from gateway.engines.litellm_wire import AsyncWire, SyncWire
from gateway.errors import StartupError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

# Read while it is imported. The first one covers the others from 1.110 on.
_BEFORE_IMPORT = {
    "LITELLM_OFFLINE_MODE": "true",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_LOCAL_ANTHROPIC_BETA_HEADERS": "true",
    "LITELLM_LOCAL_BLOG_POSTS": "true",
    "LITELLM_MODE": "PRODUCTION",  # or it reads a .env file
    "LITELLM_RUST": "false",  # its native half has connections of its own
}
_TIKTOKEN_FOLDER = "TIKTOKEN_CACHE_DIR"

_SWITCHES: dict[str, object] = {
    "telemetry": False,
    "suppress_debug_info": True,
    "set_verbose": False,
    "turn_off_message_logging": True,
    "disable_streaming_logging": True,
    # Where an engine did not count, nobody shall claim that it did: the gateway makes its own estimate, and says so.
    "disable_token_counter": True,
    "disable_hf_tokenizer_download": True,
    "disable_end_user_cost_tracking": True,
    "disable_add_prefix_to_prompt": True,  # or Anthropic's replies begin with the opening that was sent
    "REPEATED_STREAMING_CHUNK_LIMIT": sys.maxsize,  # or the hundredth dash of a line is an error
    "drop_params": False,
    "modify_params": False,
    "num_retries": 0,
    "cache": None,
    "model_fallbacks": None,
    "context_window_fallbacks": None,
    "default_fallbacks": None,
    "user_url_validation": True,
    "force_ipv4": False,
}
_LOGGERS = ("LiteLLM", "LiteLLM Proxy", "LiteLLM Router")
_CALLBACKS = (
    "callbacks",
    "input_callback",
    "success_callback",
    "failure_callback",
    "service_callback",
    "_async_success_callback",
    "_async_failure_callback",
    "_async_input_callback",
)


@dataclass(frozen=True, slots=True)
class LiteLLMLibrary:
    """The part of LiteLLM that engines use."""

    chat: Callable[..., Awaitable[Any]]
    text: Callable[..., Awaitable[Any]]
    parameters: Callable[[str], frozenset[str] | None]
    takes_text: frozenset[str]


async def load(models: Iterable[str] = ()) -> LiteLLMLibrary:
    """Import LiteLLM, and what it needs for `models`, without holding the event loop.

    Raises StartupError where that fails.
    """

    def all_of_it() -> LiteLLMLibrary:
        library = _load()
        for model in models:
            library.parameters(model)
        return library

    try:
        return await asyncio.to_thread(all_of_it)
    except (ImportError, AttributeError) as error:
        raise StartupError(
            f"LiteLLM cannot be used ({type(error).__name__}: {error}). Install the version that the lock names."
        ) from error


@cache
def _load() -> LiteLLMLibrary:
    # Pydantic's remark on LiteLLM's types, which come with the first call of each provider.
    warnings.filterwarnings("ignore", "Items? .* using the `ReadOnly` qualifier", UserWarning)
    # Its remark on a reply of another shape, with what stands in the reply.
    warnings.filterwarnings("ignore", "Pydantic serializer warnings", UserWarning)
    folder = os.environ.get(_TIKTOKEN_FOLDER)
    os.environ.update(_BEFORE_IMPORT)
    try:
        litellm = importlib.import_module("litellm")
        handlers = importlib.import_module("litellm.llms.custom_httpx.http_handler")
        importlib.import_module("litellm.litellm_core_utils.default_encoding")
    finally:
        # Its encodings lie where it says, and ours where we said.
        if folder is None:
            os.environ.pop(_TIKTOKEN_FOLDER, None)
        else:
            os.environ[_TIKTOKEN_FOLDER] = folder
    for name, value in _SWITCHES.items():
        setattr(litellm, name, value)
    for name in _CALLBACKS:
        setattr(litellm, name, [])
    for name in _LOGGERS:  # what they say can hold prompts and answers
        logging.getLogger(name).disabled = True
    _put_wires(litellm, handlers)

    @cache
    def parameters(model: str) -> frozenset[str] | None:
        name, provider, *_ = litellm.get_llm_provider(model=model)
        known = litellm.get_supported_openai_params(model=name, custom_llm_provider=provider)
        return None if known is None else frozenset(known)

    return LiteLLMLibrary(
        chat=litellm.acompletion,
        text=litellm.atext_completion,
        parameters=parameters,
        takes_text=frozenset({"openai", "azure", *litellm.openai_text_completion_compatible_providers}),
    )


def _put_wires(litellm: Any, handlers: Any) -> None:
    """Put our connections under every HTTP client that it makes."""
    wire, sync_wire = AsyncWire(), SyncWire()

    def transport(*_: Any, **__: Any) -> AsyncWire:
        return wire

    for name in ("create_async_transport", "_create_async_transport"):
        getattr(handlers.AsyncHTTPHandler, name)  # a version without it would go past us: AttributeError
        setattr(handlers.AsyncHTTPHandler, name, staticmethod(transport))
    litellm.sync_transport = sync_wire
    litellm.client_session = httpx.Client(transport=sync_wire, trust_env=False)
