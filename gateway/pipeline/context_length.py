"""Drop the students that would reject a prompt as too long, before the first call of a request.

A lower bound on the prompt's tokens decides: its words (`generation.py`), its token ids, or a count, where config.yaml
names the model's own tokenizer. Engines decide about all other prompts. Text that a chat template may remove does not
count.
"""

from __future__ import annotations

import asyncio
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING

from gateway.accounting.estimate import FALLBACK, Encoding, can_count, count_text, recount_error, texts_of
from gateway.engines.refusal import CONTEXT_EXCEEDED
from gateway.errors import InvalidRequest
from gateway.pipeline.generation import MAX_TOKEN_BYTES, words_in
from gateway.pipeline.token_count import count_or_estimate, prompt_bound
from gateway.policy.plan_variants import with_students
from gateway.policy.token_limit import allowed_limit
from gateway.protocol.text import TextRequest
from gateway.protocol.texts import each_text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gateway.accounting.engine_set import EngineSet
    from gateway.accounting.receipt_builder import ReceiptBuilder
    from gateway.pipeline.token_count import TokenCounter
    from gateway.policy.plan import StudentPlan
    from gateway.policy.schema import Route
    from gateway.protocol.chat import ChatRequest
    from gateway.protocol.requests import CompletionRequest

_BYTES_PER_TOKEN = 2  # at least: a word and a space, or a token id and a comma
_COUNTED_BYTES_PER_TOKEN = 3  # a longer prompt is counted with the tokenizer. English has more than four.
_COUNT_LIMIT_S = 0.5  # of the count that decides about max_tokens
# Fields of the caller that may shorten its prompt.
_SHORTENING = ("chat_template", "truncate_prompt_tokens")


def may_be_too_long(request: CompletionRequest, max_prompt_tokens: int | None) -> bool:
    """Return whether `least_tokens` may exceed the limit of an engine. The usual prompt is far smaller."""
    return max_prompt_tokens is not None and request.size_bytes > _BYTES_PER_TOKEN * max_prompt_tokens


async def fitting_limit(
    request: CompletionRequest, route: Route, engines: EngineSet, counter: TokenCounter, tenant: str
) -> int | None:
    """Return the token limit of a request: at most the route's maximum and, for a chat, what the context leaves.

    The limit of a chat is reduced if the largest engine of the route cannot read the prompt and write that much. The
    prompt is counted in the tenant's turns. Without a count in time, its size decides.
    Raises InvalidRequest for a raw prompt with a limit above the route's maximum.
    """
    limit = allowed_limit(request, route)
    if limit is None:
        return None
    names = [one.model for one in route.all_students] if route.mode != "teacher" else [route.teacher]
    contexts = [engines.by_name[name].state.context_tokens for name in names if name is not None]
    known = [tokens for tokens in contexts if tokens is not None]
    if isinstance(request, TextRequest) or len(known) < len(contexts) or not known:
        return limit
    context_tokens = max(known)
    by_size = request.size_bytes // _COUNTED_BYTES_PER_TOKEN
    if by_size <= context_tokens - limit or any(request.body.get(name) is not None for name in _SHORTENING):
        return limit
    encoding = engines.encodings.get(names[0] or "", Encoding(FALLBACK))
    try:
        async with asyncio.timeout(_COUNT_LIMIT_S):
            return await counter.run(tenant, partial(_fitting_limit, request, limit, context_tokens, encoding))
    except TimeoutError:
        return context_tokens - by_size if by_size < context_tokens else limit


def _fitting_limit(request: ChatRequest, limit: int, context_tokens: int, encoding: Encoding) -> int:
    """Return the limit that the context leaves. That of a prompt that does not fit by itself is not changed."""
    texts = chain.from_iterable(prompt for prompt in _prompts(request) if not isinstance(prompt, int))
    counted = count_or_estimate(encoding.name, "\n".join(texts))
    if not context_tokens - limit < counted < context_tokens:
        return limit
    bound = max(counted, prompt_bound(request, encoding))
    return context_tokens - (bound if bound < context_tokens else counted)


def may_be_too_small(request: CompletionRequest, builder: ReceiptBuilder) -> bool:
    """Return whether `drop_too_small` may drop a student."""
    engines = builder.engine_set.by_name
    for student in builder.plan.students:
        if may_be_too_long(request, engines[student.engine].state.max_prompt_tokens):
            return True
    return False


async def drop_too_small(request: CompletionRequest, builder: ReceiptBuilder) -> None:
    """Drop the students that would reject the prompt. Raises InvalidRequest if none is left."""
    plan = builder.plan
    students, limit, tokens = await _fitting(request, plan.students, builder.engine_set)
    if not students:
        field = "prompt" if isinstance(request, TextRequest) else "messages"
        raise InvalidRequest(
            f"This model's maximum context length is {limit} tokens. However, your {field} resulted in at least "
            f"{tokens} tokens. Please reduce the length of the {field}.",
            param=field,
            code=CONTEXT_EXCEEDED,
        )
    builder.plan = with_students(plan, students)


async def _fitting(
    request: CompletionRequest, students: tuple[StudentPlan, ...], engines: EngineSet
) -> tuple[tuple[StudentPlan, ...], int, int]:
    """Return the engines that may accept the prompt, the largest limit of the others, and the tokens counted for it."""
    fitting, limit, tokens = [], 0, 0
    for student in students:
        own_limit = engines.by_name[student.engine].state.max_prompt_tokens
        if own_limit is not None:
            least = await least_tokens(request, own_limit, engines.encodings.get(student.engine))
            if least > own_limit:
                limit, tokens = max((limit, tokens), (own_limit, least))
                continue
        fitting.append(student)
    return tuple(fitting), limit, tokens


async def least_tokens(request: CompletionRequest, limit: int, encoding: Encoding | None = None) -> int:
    """Return a lower bound on the tokens of the prompt, or of the longest one. Counting ends above `limit`."""
    if any(request.body.get(name) is not None for name in _SHORTENING):
        return 0
    counts = encoding is not None and encoding.own and request.size_bytes > _COUNTED_BYTES_PER_TOKEN * limit
    least = 0
    for prompt in _prompts(request):
        if isinstance(prompt, int):
            least = max(least, prompt)
            continue
        least = max(least, sum(map(len, prompt)) // MAX_TOKEN_BYTES)
        if least <= limit and sum(text.count(" ") + 1 for text in prompt) > limit:
            least = max(least, await asyncio.to_thread(_words, prompt, limit))
        if least <= limit and counts and encoding is not None:
            least = max(least, await asyncio.to_thread(_counted, prompt, limit, encoding.name))
    return least


def _prompts(request: CompletionRequest) -> Iterator[list[str] | int]:
    """Yield the texts of each prompt, or the number of its token ids."""
    if isinstance(request, TextRequest):
        for prompt in each_text(request.body["prompt"], "prompt", may_be_empty=True):
            yield [prompt] if isinstance(prompt, str) else len(prompt)
        return
    texts = ((message["role"], text) for message in request.messages for text in texts_of(message))
    # Templates remove the reasoning of earlier answers.
    yield [text for role, text in texts if role != "assistant" or "</think>" not in text]


def _words(texts: list[str], limit: int) -> int:
    words = 0
    for text in texts:
        words += words_in(text, within=False, limit=limit - words) - 1  # a template may join two texts in one word
        if words > limit:
            break
    return words


def _counted(texts: list[str], limit: int, encoding: str) -> int:
    tokens = 0
    for text in texts:
        if can_count(encoding, len(text)):
            tokens += count_text(encoding, text)
            if tokens - recount_error(tokens) > limit:
                break
    return max(0, tokens - recount_error(tokens))
