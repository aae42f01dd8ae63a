"""Output tokens of one engine call: count them, enforce the caller's limit, and bound those that never arrived.

Limit. An engine may ignore `max_tokens`. Two lower bounds on the generated tokens decide, so that an engine that obeys
the limit is never cut off:

- A word is at least one token: no token of current vocabularies contains a space between two other characters.
- A token has at most 128 bytes, the longest of cl100k_base and o200k_base.

A running count of the engine decides as well. The number of deltas does not: some servers and proxies split one token
over several deltas.

Bound. A call that ended without its usage may have generated tokens that never arrived. If the engine stops when its
client disconnects, time and speed bound them (`unread_tokens.py`). Any other engine may generate up to the limit.
Without a limit there is no bound.
"""

from __future__ import annotations

import re
from itertools import islice
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from gateway.engines.chat import is_count, read_usage
from gateway.pipeline.unread_tokens import UnreadTokens, max_tokens
from gateway.protocol.messages import generated_text, text_of

if TYPE_CHECKING:
    from gateway.accounting.shares import EngineCall
    from gateway.protocol.body import Json

MAX_TOKEN_BYTES = 128
"""Length of the longest token in bytes."""
_COUNTED_TOKENS = 10_000  # a lower bound is exact up to this number, or up to the engine's count
_LONG_PREFACE_CHARS = 200_000  # counting the words of 8 MB blocks the event loop for 130 ms
_MAX_CHAR_BYTES = 4
_PARTS = re.compile("[^ ]+")


class GenerationTracker:
    """Read the chunks or the reply of one call, sent at `now`, and record the token counts in its `EngineCall`.

    Args:
        limit: output tokens of each choice that the request allows; None: the request has no limit.
        generated_choices: number of choices that the engine generates, of which it may return the best.
        stops_within_s: seconds within which the engine stops after a disconnect; None: it is not known to stop.
        preface: text that the engine may repeat before its own, in the first choice; None: its length is unknown, so
            the reply's text does not bound the number of tokens.
    """

    def __init__(
        self,
        call: EngineCall,
        *,
        limit: int | None,
        choices: int,
        generated_choices: int,
        stops_within_s: float | None,
        preface: str | None,
        now: float,
    ) -> None:
        self._call, self._limit, self._preface = call, limit, preface
        self._unread = UnreadTokens(now)
        self._pieces = 0  # of text, as the engine sent them
        self._text_tokens = 0.0  # upper bound on the tokens of pieces that have several
        self._choices, self._generated_choices, self._stops_within_s = choices, generated_choices, stops_within_s
        self._counts: dict[int, _Count] = {}
        self._ended: set[int] = set()
        self._over = False  # the engine's own count exceeds the limit
        self._cut = False
        self._total = False  # the usage is that of all choices, and no text arrived after it
        self._totals = 0  # usage events that belong to no choice and count output tokens
        self._complete = False
        self._deltas = 0  # read one by one
        self.input_tokens = 0  # as the engine reported them; 0: not reported
        self._counted_at = 0, 0  # the engine's last count of its output tokens, and the length of the text until then
        call.limit_tokens = None if limit is None else limit * generated_choices

    @property
    def stopped(self) -> bool:
        """Return whether all choices have ended although the engine still generates: cancel the call."""
        return self._cut and len(self._ended) >= self._choices

    @property
    def text(self) -> str:
        """Return the call's text as received."""
        return self._call.text.getvalue()

    @property
    def running_count(self) -> tuple[int, int]:
        """Return the engine's last count of its output tokens, and the number of characters until then; 0: none."""
        tokens, chars = self._counted_at
        return (tokens, chars) if tokens and self._call.min_output_tokens <= tokens else (0, 0)

    def read(self, chunk: Json, now: float) -> None:
        """Count a chunk. End a choice that exceeds the limit, in place."""
        choices, read = chunk["choices"], None
        if (usage := chunk.get("usage")) and (read := read_usage(usage)) is not None:
            self._call.usage = read
            self._total = not choices
            self._totals += self._total and read.output_tokens > 0
            self._over = self._exceeds(usage)
        for choice in choices:
            index = choice.get("index", 0)
            if text := generated_text(choice.get("delta") or {}):
                self._deltas += 1
                self._add_text(index, text)
                if self._limit is not None and index not in self._ended:
                    self._enforce_limit(choice, index, text)
            if choice.get("finish_reason"):
                self._ended.add(index)
        self._call.ended = len(self._ended) >= self._choices and not self._cut
        if read is not None:
            self._counted_at = read.output_tokens, self._call.text.tell()
            self.input_tokens = read.input_tokens
        self._unread.read(now, max(self._pieces, self._counted_at[0]), self._text_tokens)

    def read_text(self, index: int, text: str, now: float, pieces: int = 1) -> bool:
        """Count text of a choice, which arrived in `pieces`. Return False, without counting it, if the choice ends
        within it."""
        if text:
            if self._limit is not None and index not in self._ended and not self._fits(index, text):
                return False
            self._add_text(index, text, pieces)
        self._unread.read(now, self._pieces, self._text_tokens)
        return True

    def hold(self, began: float, ended: float) -> None:
        """Record that nothing was read meanwhile, because the caller took its text."""
        self._unread.hold(began, ended)

    def finish(self) -> None:
        """Record that the engine has ended its reply, so that its counts are final."""
        self._complete = True

    def end_answer(self) -> None:
        """Record that the answer ends here, although the engine still generates: its running count is the answer's.

        Without a running count, the deltas with text are counted: most engines send one for each token. Some repeat the
        guidance in deltas, so the limit bounds the number.
        """
        counted, chars = self._counted_at
        if self._choices == 1:
            exact = counted if chars == self._call.text.tell() else 0
            deltas = self._deltas if self._limit is None else min(self._deltas, self._limit)
            self._call.answer_tokens = exact or max(deltas, self._call.seen_tokens)

    def read_reply(self, reply: Json) -> None:
        """Count a complete reply. Truncate the choices that exceed the limit, in place."""
        self._complete = True
        usage_body = reply.get("usage")
        self._call.usage = usage = read_usage(usage_body)
        texts = [generated_text(choice["message"]) for choice in reply["choices"]]
        self._call.text.write(texts[0] if len(texts) == 1 else "".join(texts))
        if len(texts) > 1:
            self._call.choice_texts = {index: [text] for index, text in enumerate(texts)}
        limit = self._limit
        if limit is None or self._preface is None:
            return
        exceeds = usage is not None and self._exceeds(usage_body)
        size, counted = sum(map(len, texts)), _visible_tokens(usage_body) if exceeds else 0
        for choice, text in zip(reply["choices"], texts, strict=True):
            content = choice["message"].get("content")
            if not isinstance(content, str) or not content:
                continue
            # Most texts are clearly within both lower bounds.
            if not exceeds and content.count(" ") < limit and len(content) * _MAX_CHAR_BYTES <= limit * MAX_TOKEN_BYTES:
                continue
            preface = len(self._preface) if self._preface and content.startswith(self._preface) else 0
            kept = preface + _Count().fitting(content[preface:], limit)
            tokens = counted * len(text) / size
            if tokens > limit:
                fits = int((len(text) - preface) * limit / tokens)
                kept = min(kept, preface + fits - (len(text) - len(content)))
            if kept < len(content):
                choice["message"]["content"] = content[: max(0, kept)]
                choice["finish_reason"] = "length"

    def close(self, now: float) -> None:
        """Bound the generated tokens that were never read, unless the usage is final."""
        call = self._call
        call.lost_tokens, call.unbounded = 0, False
        if self._choices > 1 and self._totals > 1:
            call.usage = None  # each event may count one choice, or all choices so far
        call.min_output_tokens = self._least_tokens()
        if self._complete or self._counted():
            return
        limit = None if self._cut else call.limit_tokens  # an engine that exceeded its limit has no bound
        if self._stops_within_s is not None:
            if not call.ended:
                call.lost_tokens = self._unread.bound(now, self._stops_within_s, self._generated_choices)
        elif limit is None:
            call.unbounded = True
        else:
            call.lost_tokens = limit
        if self._cut:
            call.limit_tokens = None
        self._add_to_running_count(call, limit)

    def _least_tokens(self) -> int:
        """Return a lower bound on the output tokens, from the text.

        It is 0 if the bound is below the engine's count without a doubt, which saves the count of each word.
        """
        call = self._call
        if call.usage is None or self._preface is None:
            return 0
        reported = call.usage.output_tokens
        text = call.text.getvalue()
        max_words = text.count(" ") + max(1, len(call.choice_texts))
        if max_words <= reported and len(text) * _MAX_CHAR_BYTES // MAX_TOKEN_BYTES <= reported:
            return 0
        texts = {index: "".join(parts) for index, parts in call.choice_texts.items()} or {0: text}
        limit, total = max(reported, _COUNTED_TOKENS), 0
        for index, text in texts.items():
            count = _Count("" if index else self._preface)
            if not count.add(text, limit):
                return limit + 1  # the engine's count is too low; the exact number does not matter
            total += count.tokens
        return total

    def _counted(self) -> bool:
        """Return whether the engine has counted the whole reply.

        A usage event after the text counts all of it, also where the stream then breaks off without a finish_reason.
        Some engines count the prompt before they generate.
        """
        usage = self._call.usage
        if usage is None or self._cut:
            return False
        if self._call.ended:
            return self._total or self._choices == 1
        return self._total and usage.output_tokens > 0

    def _add_to_running_count(self, call: EngineCall, limit: int | None) -> None:
        """Use the engine's running count instead of the text as the base of the bound, where there is one."""
        usage = call.usage
        if usage is None or self._choices > 1 or call.unbounded:  # some engines count each choice separately
            call.usage = None
            return
        output_tokens = usage.output_tokens + call.lost_tokens
        if limit is not None:
            output_tokens = max(usage.output_tokens, min(output_tokens, limit))
        call.usage, call.lost_tokens = replace(usage, output_tokens=output_tokens, estimated=True), 0

    def _exceeds(self, usage: Any) -> bool:
        """Return whether the engine's own count exceeds the limit. Each choice may have an end token in addition."""
        if self._limit is None:
            return False
        most = (self._limit + 1) * self._generated_choices
        return usage["completion_tokens"] > most and _visible_tokens(usage) > most

    def _add_text(self, index: int, text: str, pieces: int = 1) -> None:
        self._pieces += pieces
        self._text_tokens += max_tokens(text)
        self._call.text.write(text)
        if self._choices > 1:
            self._call.choice_texts.setdefault(index, []).append(text)
        self._total = False

    def _fits(self, index: int, text: str) -> bool:
        """Count the next text of a choice toward the limit, unless it exceeds the limit. Return whether it fits."""
        count = self._counts.get(index)
        if count is None:
            count = self._counts[index] = _Count("" if index else self._preface or "")
        if self._over:
            return False
        if self._preface is None or count.defer(text):
            return True
        before = count.tokens
        within = count.add(text, self._limit or 0)
        self._call.seen_tokens += count.tokens - before
        return within

    def _enforce_limit(self, choice: Json, index: int, text: str) -> None:
        if self._fits(index, text):
            return
        count = self._counts[index]
        delta = choice["delta"]
        content = text_of(delta.get("content"))
        kept = text[: count.fitting(text, self._limit or 0)] if content == text else ""
        choice["delta"] = {"content": kept, **({"role": delta["role"]} if "role" in delta else {})}
        if choice.get("logprobs"):
            choice["logprobs"] = None
        self._cut = self._cut or not choice.get("finish_reason")  # else the engine has ended the choice itself
        choice["finish_reason"] = "length"


class _Count:
    """Lower bounds on the tokens of a growing text. The text may begin with `preface`, which is not counted."""

    __slots__ = ("_bytes", "_free_chars", "_in_word", "_pending", "_words")

    def __init__(self, preface: str = "") -> None:
        self._words = self._bytes = 0
        if preface:
            size = len(preface)
            # A long preface is bounded from above, so that the bounds below stay lower bounds.
            is_long = size > _LONG_PREFACE_CHARS
            self._words = -(preface.count(" ") + 1 if is_long else words_in(preface, within=False, limit=size))
            self._bytes = -len(preface.encode())
        self._in_word = False
        self._pending: list[str] = []
        self._free_chars = 0

    @property
    def tokens(self) -> int:
        return max(0, self._words, -(-self._bytes // MAX_TOKEN_BYTES))

    def defer(self, text: str) -> bool:
        """Keep text that cannot exceed the limit, to be counted later. Return False if it might exceed the limit."""
        if len(text) > self._free_chars:
            return False
        self._free_chars -= len(text)
        self._pending.append(text)
        return True

    def add(self, text: str, limit: int) -> bool:
        """Count the text and all deferred text, unless they exceed the limit. Return whether they were counted."""
        if self._pending:
            before = "".join(self._pending)
            self._pending.clear()
            self.add(before, limit)
        size = self._bytes + (len(text) if text.isascii() else len(text.encode("utf-8", "replace")))
        if size > limit * MAX_TOKEN_BYTES:
            return False
        count = self._words + words_in(text, within=self._in_word, limit=limit - self._words)
        if count > limit:
            return False
        self._words, self._bytes = count, size
        last = text.rpartition(" ")
        self._in_word = bool(last[2].strip()) or (not last[1] and self._in_word)
        # A word has at least one character and is followed by a space. A character has at most four bytes.
        self._free_chars = min(2 * (limit - count), (limit * MAX_TOKEN_BYTES - size) // _MAX_CHAR_BYTES)
        return True

    def fitting(self, text: str, limit: int) -> int:
        """Return the number of characters of the next text that are within the limit."""
        left = limit - self._words
        bytes_left = limit * MAX_TOKEN_BYTES - self._bytes
        if text.count(" ") < left and len(text) * _MAX_CHAR_BYTES <= bytes_left:
            return len(text)  # the usual case: a text has at most one word more than it has spaces
        text = text[: max(0, bytes_left)]  # a character has at least one byte
        at = len(text)
        for part in _PARTS.finditer(text):
            if not part[0].isspace():
                left -= not (self._in_word and part.start() == 0)
                if left < 0:
                    at = part.start()
                    break
        fits = text[:at].encode("utf-8", "replace")[: max(0, bytes_left)].decode("utf-8", "ignore")
        return len(fits)


def words_in(text: str, *, within: bool, limit: int) -> int:
    """Return the number of words that begin in a text, or a larger number than `limit` if there are more.

    Only spaces separate words: some tokens contain line ends between other characters. The time depends on `limit`, not
    on the number of words. If the text is `within` a word, it may continue that word.
    """
    words = (part for part in _PARTS.finditer(text) if not part[0].isspace())
    if (first := next(words, None)) is None:
        return 0
    continued = within and first.start() == 0
    return sum(1 for _ in islice(words, max(0, limit) + 1)) + 1 - continued


def _visible_tokens(usage: Any) -> int:
    written_tokens = usage["completion_tokens"]
    details = usage.get("completion_tokens_details")
    hidden = details.get("reasoning_tokens") if isinstance(details, dict) else None
    return int(written_tokens) - (hidden if is_count(hidden) else 0)
