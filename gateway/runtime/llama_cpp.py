"""A llama.cpp server inside this process, through xllamacpp. Its HTTP threads and its decoding are C++ threads."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple

from gateway.errors import StartupError

if TYPE_CHECKING:
    from pathlib import Path

PROMPT_CACHE_MIB = 256
_WARNINGS = 1


class LlamaOptions(NamedTuple):
    """Options of a llama.cpp server.

    With one of `batch_tokens`, reading a text computes exactly the values of writing it, but takes longer.
    """

    threads: int = 1  # threads for prompts and for decoding
    parallel: int = 4  # requests that run at once; further ones wait in llama.cpp's queue
    slot_tokens: int = 4096  # the context of each request, prompt and answer together
    poll_percent: int = 0  # how long an idle worker thread spins before it sleeps; llama.cpp's default is 50
    continue_assistant: bool = True  # whether a trailing assistant message is left open for continuation
    batch_tokens: int | None = None  # tokens of a prompt per step; None: llama.cpp's default


def require_library() -> None:
    """Raise StartupError if xllamacpp is not installed."""
    if find_spec("xllamacpp") is None:
        raise StartupError(
            "xllamacpp is not installed: run pip install 'gkt-gateway[local]', or on a device 'gkt-edge[llama]'"
        )


def serve(model: Path, name: str, options: LlamaOptions, *, host: str, port: int = 0) -> Any:
    """Load `model` and listen on `host`; return xllamacpp's Server, which serves until it is deleted.

    `host` is an address, or a path that ends in `.sock` for a unix socket. Port 0 picks a free port. The address
    that was taken is the Server's `listening_address`. `name` is the model name in replies. Blocks while loading.
    Raises StartupError if xllamacpp is not installed or cannot be loaded, or could not load the file or take the
    address.
    """
    require_library()
    try:
        import xllamacpp
    except (ImportError, OSError) as error:  # such as a missing libgomp.so.1
        raise StartupError(
            f"xllamacpp is installed, but cannot be loaded ({error}): install the named library, or xllamacpp again"
        ) from error

    params = xllamacpp.CommonParams()
    params.model.path = str(model)
    params.model_alias = {name}
    params.hostnames = [host]
    params.port = port
    params.cpuparams.n_threads = options.threads
    params.cpuparams_batch.n_threads = options.threads
    params.cpuparams.poll = options.poll_percent
    params.cpuparams_batch.poll = options.poll_percent
    params.n_parallel = options.parallel
    # Without a unified cache, each slot owns its share, so that a long chat cannot fail other requests.
    params.kv_unified = False
    params.n_ctx = options.slot_tokens * options.parallel
    # llama.cpp's default is up to 8 GiB for earlier prompts, which is too much for a laptop.
    params.cache_ram_mib = PROMPT_CACHE_MIB
    params.prefill_assistant = options.continue_assistant
    if options.batch_tokens is not None:
        params.n_ubatch = options.batch_tokens
    params.verbosity = _WARNINGS
    params.ui = False
    try:
        return xllamacpp.Server(params)
    except (RuntimeError, ValueError) as error:
        raise StartupError(f"llama.cpp could not serve {model.name} on {host}:{port}: {error}") from error
