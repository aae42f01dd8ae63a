"""Unions of the requests that callers may send."""

from __future__ import annotations

from typing import TypeAlias

from gateway.protocol.chat import ChatRequest
from gateway.protocol.embeddings import EmbeddingsRequest
from gateway.protocol.text import TextRequest

CompletionRequest: TypeAlias = ChatRequest | TextRequest
"""A request that the completion path answers."""

AnyRequest: TypeAlias = CompletionRequest | EmbeddingsRequest
"""A request that a route may take."""
