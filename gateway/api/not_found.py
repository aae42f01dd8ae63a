"""The message of a 404: the endpoint that was probably meant, and all endpoints of the listener."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_MAX_PATH_CHARS = 100
_MAX_SEGMENTS = 12
_PARAMETER = re.compile(r"{(\w+):[^}]*}")
# APIs of OpenAI and of engines that the gateway does not have, by the path's first segment after /v1.
_NOT_OFFERED = frozenset(
    {"assistants", "audio", "batches", "complete", "containers", "conversations", "evals", "files", "fine-tunes",
     "fine_tuning", "generate", "images", "moderations", "organization", "realtime", "rerank", "score", "skills",
     "threads", "tokenize", "uploads", "vector_stores", "videos"}
)  # fmt: skip


def shown(path: str) -> str:
    """Return the path as an error quotes it."""
    return path if len(path) <= _MAX_PATH_CHARS else path[:_MAX_PATH_CHARS] + "..."


class Endpoints:
    """The endpoints of a listener, and what to do instead of calling a path that does not exist."""

    def __init__(self, routes: Iterable[web.AbstractRouteDef]) -> None:
        by_path: dict[str, list[str]] = {}
        for route in routes:
            assert isinstance(route, web.RouteDef), "the route table contains single routes only"
            by_path.setdefault(_PARAMETER.sub(r"{\1}", route.path), []).append(route.method)
        self._by_path: Mapping[str, str] = {path: "|".join(methods) for path, methods in by_path.items()}
        self._listed = ", ".join(f"{methods} {path}" for path, methods in self._by_path.items())

    def not_found(self, method: str, path: str) -> str:
        """Return the message for a request to a path that does not exist."""
        hint = f" {hint}" if (hint := self._hint(path)) else ""
        return f"There is no {method} {shown(path)} here.{hint} This listener has {self._listed}."

    def _hint(self, path: str) -> str:
        segments = [segment for segment in path.lower().split("/", _MAX_SEGMENTS)[:_MAX_SEGMENTS] if segment]
        after_version = segments[1:] if segments[:1] == ["v1"] else segments
        if after_version and after_version[0] in _NOT_OFFERED:
            return f"The gateway does not offer '{after_version[0]}'."
        # Clients put names before a path (/openai/v1, /v1/v1, /v1/engines/NAME) or leave /v1 out.
        for start in range(len(segments)):
            rest = "/" + "/".join(segments[start:])
            for candidate in (rest, "/v1" + rest):
                if (methods := self._by_path.get(candidate)) is not None:
                    return f"Did you mean {methods} {candidate}?"
        return ""
