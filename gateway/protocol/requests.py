"""Unions of the requests that callers may send."""

from __future__ import annotations

from typing import TypeAlias

from gateway.protocol.chat import ChatRequest
from gateway.protocol.embeddings import EmbeddingsRequest
from gateway.protocol.text import TextRequest

CompletionRequest: TypeAlias = ChatRequest | TextRequest
"""What the path answers."""

AnyRequest: TypeAlias = CompletionRequest | EmbeddingsRequest
"""What a route may take."""
