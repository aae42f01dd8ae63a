"""Unions of the requests that callers may send."""

from __future__ import annotations

from typing import TypeAlias

from gateway.protocol.chat import ChatRequest
from gateway.protocol.embeddings import EmbeddingsRequest
from gateway.protocol.text import TextRequest

CompletionRequest: TypeAlias = ChatRequest | TextRequest
"""A request that the completion path answers."""

AnyRequest: TypeAlias = CompletionRequest | EmbeddingsRequest
"""A request that a route may take.

`choices` is the number of answers that it requests, `generated_choices` that of the engine, which may return only the
best. `non_text_parts` are content parts without text, whose token count may exceed their size in bytes.
"""
