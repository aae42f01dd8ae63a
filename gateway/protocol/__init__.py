"""OpenAI's wire: what callers send and what they get.

Requests are decoded once. The fields the gateway acts on are checked and typed; the whole body is kept as it came, so
that parameters nobody here knows reach the student untouched. OpenAI's names (`prompt_tokens`, ...) live in this
package only; inside, it is `input_tokens` and `output_tokens`.

    body.py         a body's bytes -> an object that fits one of the structs below, or an InvalidRequest
    structure.py    bounds on the structure of JSON, before it is decoded
    token_ids.py    long lists of token ids
    unicode.py      repair of text that is no valid Unicode
    elsewhere.py    what no body may say: where a call goes, or as whom
    field_names.py  other names of the fields that the gateway reads
    chat.py         /v1/chat/completions
    text.py         /v1/completions
    embeddings.py   /v1/embeddings
    reply.py        what every reply and chunk shares
"""

from gateway.protocol.body import MAX_CHOICES, MAX_TOKENS, CallerRequest, Json, too_deep
from gateway.protocol.chat import ChatRequest, parse_chat
from gateway.protocol.embeddings import EmbeddingsRequest, parse_embeddings
from gateway.protocol.reply import ReplyHead, TextReplyHead, passed_on, usage_body
from gateway.protocol.structure import MAX_DEPTH
from gateway.protocol.text import TextRequest, parse_text_completion

CompletionRequest = ChatRequest | TextRequest
"""What the path answers."""

AnyRequest = CompletionRequest | EmbeddingsRequest
"""What a route may take."""

__all__ = [
    "MAX_CHOICES",
    "MAX_DEPTH",
    "MAX_TOKENS",
    "AnyRequest",
    "CallerRequest",
    "ChatRequest",
    "CompletionRequest",
    "EmbeddingsRequest",
    "Json",
    "ReplyHead",
    "TextReplyHead",
    "TextRequest",
    "parse_chat",
    "parse_embeddings",
    "parse_text_completion",
    "passed_on",
    "too_deep",
    "usage_body",
]
