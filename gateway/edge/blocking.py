"""The client for programs without asyncio."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Self

from gateway.edge.client import PATIENCE_S, EdgeClient

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from gateway.edge.queue import Synced
    from gateway.edge.student import UrlStudent
    from gateway.protocol.body import Json


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
        async def open_client() -> EdgeClient:
            client = EdgeClient(gateway, key=key, student=student, route=route, queue=queue, patience_s=patience_s)
            return await client.__aenter__()

        self._open_client = open_client

    def __enter__(self) -> Self:
        self._runner = asyncio.Runner()
        try:
            self._client = self._runner.run(self._open_client())
        except BaseException:
            self._runner.close()
            raise
        return self

    def __exit__(self, *details: object) -> None:
        try:
            self._runner.run(self._client.__aexit__(*details))
        finally:
            self._runner.close()

    def stream(self, body: Mapping[str, Any]) -> Iterator[Json]:
        """See `EdgeClient.stream`."""
        chunks = self._client.stream(body)

        async def next_chunk() -> Json | None:
            return await anext(chunks, None)

        try:
            while (chunk := self._runner.run(next_chunk())) is not None:
                yield chunk
        finally:
            self._runner.run(chunks.aclose())

    def complete(self, body: Mapping[str, Any]) -> Json:
        """See `EdgeClient.complete`."""
        return self._runner.run(self._client.complete(body))

    def sync(self) -> Synced:
        """See `EdgeClient.sync`."""
        return self._runner.run(self._client.sync())

    def waiting(self) -> int:
        """See `EdgeClient.waiting`."""
        return self._runner.run(self._client.waiting())
