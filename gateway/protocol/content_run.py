"""Stream chunks that differ only in the text of one delta, without a decoded object for each of them.

Most chunks of a stream repeat the chunk before them, except for the text of their delta. A run has one of these chunks
and the texts of all. Each step of a stream then handles a run at once, however many chunks it has.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import orjson

from gateway.runtime.record import Record

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import TypeAlias

    from gateway.protocol.body import Json

    ChunkGroup: TypeAlias = Sequence["Json | ContentRun"]
    """Chunks that arrived together."""

# A key "content" and its text. In a string, the quotes of the key would be escaped.
_KEY = b'"content"'
_CONTENT = re.compile(rb'"content"\s*:\s*("[^"\\]*(?:\\.[^"\\]*)*")')
_MAX_BYTES = 4096  # a longer chunk is no template


class ChunkTemplate(Record, frozen=True):
    """A chunk with one choice and no other news than its content, and the JSON around the content."""

    chunk: Json
    before: bytes
    after: bytes
    index: int = 0  # of the choice

    def with_content(self, content: str) -> Json:
        """Return a chunk with this content."""
        choice = self.chunk["choices"][0]
        return {**self.chunk, "choices": [{**choice, "delta": {**choice["delta"], "content": content}}]}

    def content_of(self, raw: bytes) -> str | None:
        """Return the content of a chunk that is equal to this one but for its content; None for any other."""
        text = raw.removeprefix(self.before).removesuffix(self.after)
        if len(text) + len(self.before) + len(self.after) != len(raw):
            return None
        try:
            content = orjson.loads(text)
        except orjson.JSONDecodeError:
            return None
        return content if isinstance(content, str) else None


def template_of(raw: bytes, chunk: Json) -> ChunkTemplate | None:
    """Return the template for chunks like this one, whose JSON is `raw`; None if it is more than text of one choice."""
    choices = chunk["choices"]
    if len(raw) > _MAX_BYTES or len(choices) != 1 or raw.count(_KEY) != 1 or chunk.get("usage"):
        return None
    choice = choices[0]
    delta: Any = choice.get("delta")
    if not delta or choice.get("finish_reason") or choice.get("logprobs") or not isinstance(delta.get("content"), str):
        return None
    if any(value not in (None, "") for name, value in delta.items() if name not in ("content", "role")):
        return None
    if (found := _CONTENT.search(raw)) is None:
        return None
    # The text found may belong to another object, which a different text in its place shows.
    before, after = raw[: found.start(1)], raw[found.end(1) :]
    other: Json = orjson.loads(before + found[1][:-1] + b'."' + after)
    template = ChunkTemplate(other, before, after, choice.get("index", 0))
    return template if other == ChunkTemplate(chunk, b"", b"").with_content(f"{delta['content']}.") else None


class ContentRun(Record, frozen=True):
    """Successive chunks that are equal to `template`, each with one of `contents`."""

    template: ChunkTemplate
    contents: list[str]

    def chunks(self) -> Iterator[Json]:
        return map(self.template.with_content, self.contents)

    def events(self) -> bytes:
        """Return the chunks as server-sent events."""
        template, contents = self.template, self.contents
        if len(contents) == 1:
            return b"data: %b%b%b\n\n" % (template.before, orjson.dumps(contents[0]), template.after)
        before, after = b"data: " + template.before, template.after + b"\n\n"
        return before + (after + before).join(map(orjson.dumps, contents)) + after


def each_chunk(group: ChunkGroup) -> Iterator[Json]:
    """Return the chunks of a group, those of its runs included."""
    for part in group:
        if isinstance(part, ContentRun):
            yield from part.chunks()
        else:
            yield part
