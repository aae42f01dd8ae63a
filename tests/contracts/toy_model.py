"""The model of the stand-in: a fixed answer to each question, and vLLM's constraints on the tokens of one call.

In place of a forbidden token, the model generates the next one of its words. Sources: `v1/sample/logits_processor`,
`v1/sample/ops/bad_words.py` and `v1/core/sched/utils.py` of vLLM 0.32.0.
"""

from __future__ import annotations

import re
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple

from gateway.protocol.capabilities.continuation import probes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    Json = dict[str, Any]

ANSWER_WORDS = 90
TOKENS = re.compile(r"<\|\w+\|>|\s*[^\s<]+|\s+|<")
END = "<|end|>"
_FILLER = " so"  # after the end of the answer
_WORDS = TOKENS.findall(" the sky sea light wave wind of and to in far near blue red rests, then again; so it is")
_ALPHABET = {probes("vllm")[0].question: "a b c d e f g h i j k l m n o p q r s t u v w x y z"}


class Output(NamedTuple):
    """The tokens of one call. A stop token is one of them, and not part of the text."""

    tokens: tuple[str, ...]
    finish: str
    stop_token: str | None = None


def answer(question: str) -> Iterator[str]:
    """Yield the tokens of the model's answer to a question."""
    if question in _ALPHABET:
        yield from TOKENS.findall(_ALPHABET[question])
        return
    random = Random(question)
    yield "So"
    for _ in range(ANSWER_WORDS):
        yield random.choice(_WORDS)
    yield " end."


class Constraints:
    """The constraints of a request. `text_of` returns a token's text by its id."""

    def __init__(self, body: Json, text_of: Callable[[int], str]) -> None:
        self.least: int = body.get("min_tokens") or 0
        self._ignores_end = bool(body.get("ignore_eos"))
        self._bias = {text_of(int(number)): bias for number, bias in (body.get("logit_bias") or {}).items()}
        allowed = body.get("allowed_token_ids")
        self._allowed = None if allowed is None else {text_of(number) for number in allowed}
        self._stops = {text_of(number) for number in body.get("stop_token_ids") or ()}
        words = [word.lstrip() for word in body.get("bad_words") or ()]
        self._bad_words = [tuple(TOKENS.findall(form)) for word in words for form in (word, f" {word}")]

    def generate(self, question: str, begun: str, limit: int) -> Output:
        """Generate at most `limit` tokens of the answer, after the part that is `begun`."""
        natural = list(answer(question))
        at, shown, own = 0, "", list[str]()
        while len(shown) < len(begun):
            own.append(self._next(natural, at, own, may_stop=False))
            at, shown = at + 1, shown + own[-1]
        if not shown.startswith(begun):
            at, shown = 0, begun  # another model began the answer: this one gives its own
        output = [rest] if (rest := shown.removeprefix(begun)) else []
        while True:
            may_end = not self._ignores_end and len(output) >= self.least and self._is_allowed(END)
            if at >= len(natural) and may_end:
                return Output(tuple(output), "stop")
            if len(output) >= limit:
                return Output(tuple(output), "length")
            output.append(self._next(natural, at, output, may_stop=len(output) >= self.least))
            at += 1
            if output[-1] in self._stops:
                return Output(tuple(output), "stop", output[-1])

    def _next(self, natural: Sequence[str], at: int, output: Sequence[str], *, may_stop: bool) -> str:
        preferred = natural[at] if at < len(natural) else _FILLER
        turn = at % len(_WORDS)
        candidates = dict.fromkeys((preferred, *_WORDS[turn:], *_WORDS[:turn], *self._bias, *(self._allowed or ())))
        ranks = {token: rank for rank, token in enumerate(candidates) if self._may_follow(token, output)}
        ranks = ranks if may_stop else {token: rank for token, rank in ranks.items() if token not in self._stops}
        return max(ranks, key=lambda token: self._bias.get(token, 0) - ranks[token])

    def _may_follow(self, token: str, output: Sequence[str]) -> bool:
        return self._is_allowed(token) and all(
            (*output[len(output) - len(word) + 1 :], token) != word for word in self._bad_words
        )

    def _is_allowed(self, token: str) -> bool:
        return self._allowed is None or token in self._allowed
