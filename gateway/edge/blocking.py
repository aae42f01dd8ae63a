"""The client for programs without asyncio."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Self, TypeVar

from gateway.edge.client import PATIENCE_S, EdgeClient

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator, Mapping
    from pathlib import Path
    from types import TracebackType

    from gateway.edge.queue import Synced
    from gateway.edge.student import UrlStudent
    from gateway.protocol.body import Json

_T = TypeVar("_T")


class Edge:
    """`EdgeClient` without asyncio, with the same arguments and methods; use it from one thread at a time.

    Usage reports are sent during later calls and on exit.
    """

    def __init__(
        self,
        gateway: str,
        *,
        key: str,
        student: UrlStudent,
        route: str | None = None,
        queue: Path | str | None = None,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._arguments: dict[str, Any] = {
            "key": key, "student": student, "route": route, "queue": queue, "patience_s": patience_s,
        }  # fmt: skip
        self._gateway = gateway

    def __enter__(self) -> Self:
        self._runner = asyncio.Runner()
        try:
            self._client = self._run(self._open())
        except BaseException:
            self._runner.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._run(self._client.__aexit__(kind, error, trace))
        finally:
            self._runner.close()

    def stream(self, body: Mapping[str, Any]) -> Iterator[Json]:
        """See `EdgeClient.stream`."""
        chunks = self._client.stream(body)

        async def next_chunk() -> Json | None:
            return await anext(chunks, None)

        try:
            while (chunk := self._run(next_chunk())) is not None:
                yield chunk
        finally:
            self._run(chunks.aclose())

    def complete(self, body: Mapping[str, Any]) -> Json:
        """See `EdgeClient.complete`."""
        return self._run(self._client.complete(body))

    def sync(self) -> Synced:
        """See `EdgeClient.sync`."""
        return self._run(self._client.sync())

    def waiting(self) -> int:
        """See `EdgeClient.waiting`."""
        return self._run(self._client.waiting())

    async def _open(self) -> EdgeClient:
        return await EdgeClient(self._gateway, **self._arguments).__aenter__()

    def _run(self, coroutine: Coroutine[Any, Any, _T]) -> _T:
        return self._runner.run(coroutine)
