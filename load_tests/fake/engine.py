"""The fake engine: routes, accepts or rejects a request, and passes it to the batch or answers at once."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from functools import partial
from random import Random
from typing import TYPE_CHECKING

import orjson

from load_tests.fake.batching import Batching
from load_tests.fake.call import Call, PlannedAnswer
from load_tests.fake.http import FakeConnection, reply
from load_tests.fake.replies import Form, Text, error, generated, tgi_parser_error, tgi_stream_error
from load_tests.fake.requests import InvalidRequestBody, ParsedRequest, read_chat, read_completion, read_generate
from load_tests.fake.stats import Stats

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from load_tests.fake.call import Fault
    from load_tests.fake.profile import Profile


_BACKLOG = 1024
_FAILURES = {
    "fail_424": (424, "generation", "Request failed during generation: a configured fault"),
    "fail_500": (500, "incomplete_generation", "Incomplete generation"),
}
_TGI_CLIENT_BATCH = 4  # its default


class FakeEngine:
    """A modelled engine. It answers while it is `serving`.

    Each dialect has the chats and completions of OpenAI, and /generate and /health of TGI. Only TGI's has its /info.
    The profile's dialect selects the format of errors, chats and completions. TGI's /generate_stream and /tokenize are
    missing.
    """

    def __init__(self, profile: Profile) -> None:
        self.stats = Stats()
        self._profile = profile
        self._tgi = profile.dialect == "tgi"
        self._random = Random(profile.seed)
        self._batching = None if profile.decode is None else Batching(profile, self.stats)
        faults = profile.faults
        self._faults: list[tuple[Fault, float]] = [
            ("fail_424", faults.fail_424),
            ("fail_500", faults.fail_500),
            ("hang", faults.hang),
            ("break_off", faults.break_off),
        ]
        chat, completions = (Form(profile.model, chat=chat, tgi=self._tgi) for chat in (True, False))
        self._asking: dict[bytes, tuple[Callable[[bytes, Profile], ParsedRequest], Form | None]] = {
            b"POST /v1/chat/completions": (read_chat, chat),
            b"POST /v1/completions": (read_completion, completions),
            b"POST /generate": (read_generate, None),
        }
        self._facts = {
            b"GET /health": reply(b""),
            b"GET /v1/models": reply(orjson.dumps(_models(profile))),
        }
        if self._tgi:
            self._facts[b"GET /info"] = reply(orjson.dumps(_info(profile)))

    @asynccontextmanager
    async def serving(self, port: int = 0) -> AsyncIterator[str]:
        """Listen on the loopback interface for the duration of the block; yield the URL. Raises OSError."""
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: FakeConnection(self._handle), "127.0.0.1", port, backlog=_BACKLOG)
        try:
            async with asyncio.TaskGroup() as group:
                batching = group.create_task(self._batching.run()) if self._batching is not None else None
                yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
                if batching is not None:
                    batching.cancel()
        finally:
            server.close()

    def _handle(self, connection: FakeConnection, request: bytes, body: bytes) -> None:
        """Answer `METHOD /path`, now or later."""
        if (asking := self._asking.get(request)) is not None:
            self._ask(connection, *asking, body)
            return
        if request == b"GET /stats":
            whole = reply(orjson.dumps(self.stats.shown()))
        elif request == b"POST /stats/reset":
            self.stats.reset()
            whole = reply(b"{}")
        else:
            whole = self._facts.get(request) or self._no_route(request)
        connection.write(whole)
        connection.end()

    def _no_route(self, request: bytes) -> bytes:
        """Return the reply to an unknown route. TGI's has no body, and is a 405 for a known path."""
        if not self._tgi:
            return error(404, "no such route", "not_found", tgi=False)
        path = request.partition(b" ")[2]
        known = any(route.partition(b" ")[2] == path for route in (*self._asking, *self._facts))
        return reply(b"", 405 if known else 404)

    def _ask(
        self,
        connection: FakeConnection,
        read: Callable[[bytes, Profile], ParsedRequest],
        form: Form | None,
        body: bytes,
    ) -> None:
        self.stats.requests += 1
        try:
            request = read(body, self._profile)
        except InvalidRequestBody as invalid:
            self.stats.rejected += 1
            connection.write(
                tgi_parser_error(invalid) if self._tgi else error(400, str(invalid), "validation", tgi=False)
            )
            connection.end()
            return
        try:
            answer = self._answer(request, form)
        except InvalidRequestBody as invalid:
            self.stats.rejected += 1
            # TGI compares the number of prompts before it starts a stream.
            in_stream = request.stream and invalid.kind == "validation"
            self._refuse(connection, 422 if self._tgi else 400, str(invalid), invalid.kind, in_stream=in_stream)
            return
        most = self._profile.max_concurrent_requests
        if most is not None and self.stats.in_flight + len(answer.texts) > most:
            self.stats.refused += 1
            self._refuse(connection, 429, "Model is overloaded", "overloaded", in_stream=request.stream)
            return
        fault = self._fault()
        if fault == "fail_424" or fault == "fail_500":
            self.stats.failed += 1
            status, kind, message = _FAILURES[fault]
            self._refuse(connection, status, message, kind, in_stream=request.stream)
            return
        call = Call(connection, answer, fault, self.stats)
        if fault == "hang":
            return
        if self._batching is None:
            call.answer_now()
            return
        for sequence in call.sequences():
            self._batching.submit(sequence)

    def _answer(self, request: ParsedRequest, form: Form | None) -> PlannedAnswer:
        if self._tgi and len(request.reads) > _TGI_CLIENT_BATCH:
            message = f"Number of prompts exceeds the maximum allowed batch size of {_TGI_CLIENT_BATCH}"
            raise InvalidRequestBody(message, "batch size exceeded")
        room = self._profile.max_total_tokens - max(request.reads)
        if (request.max_tokens or 1) > room:
            limit = f"`inputs` tokens + `max_new_tokens` must be <= {self._profile.max_total_tokens}"
            raise InvalidRequestBody(f"Input validation error: {limit}", "validation")
        at_most = request.max_tokens or room
        each = 1 if self._tgi else request.choices  # TGI passes over `n`
        texts = tuple(self._text(index, request, at_most) for index in range(each * len(request.reads)))
        if form is None:
            body = partial(generated, texts[0], request.details)
        else:
            body = partial(form.whole, texts, sum(request.reads))
        return PlannedAnswer(
            texts,
            request.reads,
            body,
            form if request.stream else None,
            usage=request.usage,
            headers=self._tgi or form is None,
            compute_time=form is None or form.is_chat,
        )

    def _text(self, index: int, request: ParsedRequest, at_most: int) -> Text:
        """Return text and finish reason. TGI checks the limit first: an answer that ends there has reason `length`."""
        length = self._profile.answer_length(self._random.random())
        if length is None or length >= at_most:
            return Text(index, request.tape, request.at, at_most, "length")
        return Text(index, request.tape, request.at, length, "stop")

    def _fault(self) -> Fault | None:
        drawn = self._random.random()
        for name, fraction in self._faults:
            drawn -= fraction
            if drawn < 0:
                return name
        return None

    def _refuse(
        self, connection: FakeConnection, status: int, message: str, kind: str, *, in_stream: bool = False
    ) -> None:
        streamed = in_stream and self._tgi
        connection.write(tgi_stream_error(message) if streamed else error(status, message, kind, tgi=self._tgi))
        connection.end()


def _info(profile: Profile) -> dict[str, object]:
    return {
        "model_id": profile.model,
        "model_sha": None,
        "model_pipeline_tag": "text-generation",
        "max_concurrent_requests": profile.max_concurrent_requests,
        "max_best_of": 2,
        "max_stop_sequences": 4,
        "max_input_tokens": profile.max_total_tokens - 1,
        "max_total_tokens": profile.max_total_tokens,
        "validation_workers": 2,
        "max_client_batch_size": _TGI_CLIENT_BATCH,
        "router": "fake",
        "version": "3.3.7",
        "sha": None,
        "docker_label": None,
    }


def _models(profile: Profile) -> dict[str, object]:
    entry = {"id": profile.model, "object": "model", "created": 0, "owned_by": "fake"}
    return {"object": "list", "data": [entry]}
