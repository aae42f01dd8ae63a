"""A student in this process, through llama.cpp (the extra `llama`). It decodes in C++ threads."""

from __future__ import annotations

import asyncio
import os
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Self

import httpx

from gateway.edge.student import SILENCE_LIMIT_S, UrlStudent
from gateway.errors import StartupError
from gateway.runtime import llama_cpp as llama

if TYPE_CHECKING:
    from gateway.capabilities.reasoning import Reasoning

_MAX_THREADS = 4


class LlamaStudent(UrlStudent):
    """A student in this process: an async context manager that loads the weights, which takes seconds.

    llama.cpp's own server listens on a unix socket that only this user can access, and on no port. Raises StartupError
    if xllamacpp is not installed, or cannot load the weights, a .gguf file.

    Args:
        name: the student's name in usage reports; None: the file's name without its suffix.
        threads: decoding threads; None: one less than the number of cores, at most four. The threads synchronize many
            times per token, so more threads than free cores make decoding very slow.
        context_tokens: maximum tokens of the prompt and the answer together.
    """

    def __init__(
        self,
        weights: Path | str,
        *,
        name: str | None = None,
        threads: int | None = None,
        context_tokens: int = 4096,
        reasoning: Reasoning = "none",
        silence_s: float = SILENCE_LIMIT_S,
    ) -> None:
        self._weights = Path(weights)
        model = name or self._weights.name.removesuffix(".gguf")
        super().__init__("http://student/v1", model=model, reasoning=reasoning, silence_s=silence_s)
        self._options = llama.LlamaOptions(
            threads=threads or max(1, min((os.cpu_count() or 1) - 1, _MAX_THREADS)),
            parallel=1,
            slot_tokens=context_tokens,
        )
        self._llama: Any = None

    async def __aenter__(self) -> Self:
        if find_spec("xllamacpp") is None:
            raise StartupError(
                "xllamacpp is not installed, which runs a student in this process: pip install 'gkt-edge[llama]', or "
                "name a server with its URL"
            )
        if not self._weights.is_file():
            raise StartupError(f"there is no file {self._weights}: name a .gguf file")
        self._folder = TemporaryDirectory(prefix="gkt-edge-")
        self._socket = str(Path(self._folder.name) / "llama.sock")
        try:
            self._llama = await asyncio.to_thread(
                llama.serve, self._weights, self.name, self._options, host=self._socket
            )
        except BaseException:
            self._folder.cleanup()
            raise
        return await super().__aenter__()

    async def __aexit__(self, *details: object) -> None:
        await super().__aexit__(*details)
        # Its destructor waits for open connections; all are closed now.
        self._llama = None
        self._folder.cleanup()

    def _transport(self) -> httpx.AsyncBaseTransport:
        return httpx.AsyncHTTPTransport(uds=self._socket, limits=httpx.Limits(max_keepalive_connections=0))
