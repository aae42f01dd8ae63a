"""TGI's wire protocol as the embedded teacher implements it, with a real model."""

from __future__ import annotations

import asyncio
import io
import json
import re
import statistics
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import aiohttp

pytestmark = pytest.mark.models

FRANCE = "The capital of France is"
COUNT = "1, 2, 3,"
SAY_OK = "<|im_start|>user\nSay OK.<|im_end|>\n<|im_start|>assistant\n"
LONG = {"inputs": "Write a long story.", "parameters": {"max_new_tokens": 450}}
HEADERS = {
    "x-compute-type",
    "x-compute-time",
    "x-compute-characters",
    "x-total-time",
    "x-validation-time",
    "x-queue-time",
    "x-inference-time",
    "x-time-per-token",
    "x-prompt-tokens",
    "x-generated-tokens",
}


async def generate(teacher: aiohttp.ClientSession, inputs: str, **parameters: Any) -> dict[str, Any]:
    body = {"inputs": inputs, "parameters": {"max_new_tokens": 8, **parameters}}
    async with teacher.post("/generate", json=body) as reply:
        assert reply.status == 200, await reply.text()
        return await reply.json()


async def events(reply: aiohttp.ClientResponse) -> list[Any]:
    assert reply.status == 200
    assert reply.content_type == "text/event-stream"
    data = [line.removeprefix("data: ") for line in (await reply.text()).splitlines() if line]
    return [line if line == "[DONE]" else json.loads(line) for line in data]


async def gauge(teacher: aiohttp.ClientSession, name: str) -> int:
    async with teacher.get("/metrics") as reply:
        lines = (await reply.text()).splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name} "))


async def until(teacher: aiohttp.ClientSession, name: str, value: int) -> None:
    async with asyncio.timeout(10):
        while True:
            if await gauge(teacher, name) == value:
                return
            await asyncio.sleep(0.02)


class TestGenerate:
    async def test_the_default_with_parameters_is_greedy(self, teacher):
        first, second = await generate(teacher, FRANCE), await generate(teacher, FRANCE)
        assert first == second
        assert first["generated_text"].startswith(" Paris")

    async def test_details_are_sent_only_on_request(self, teacher):
        assert "details" not in await generate(teacher, FRANCE)
        details = (await generate(teacher, FRANCE, details=True))["details"]
        assert details["finish_reason"] == "length"
        assert details["generated_tokens"] == len(details["tokens"]) == 8
        assert details["prefill"] == []
        assert details["seed"] is None

    async def test_without_parameters_it_samples_and_returns_its_seed(self, teacher):
        body = {"inputs": SAY_OK, "parameters": {"do_sample": True, "max_new_tokens": 2, "details": True}}
        async with teacher.post("/generate", json=body) as reply:
            assert isinstance((await reply.json())["details"]["seed"], int)

    async def test_one_seed_gives_one_text(self, teacher):
        settings = {"temperature": 1.5, "seed": 7, "max_new_tokens": 12}
        texts = {(await generate(teacher, "Once", **settings))["generated_text"] for _ in range(2)}
        assert len(texts) == 1
        other = await generate(teacher, "Once", **{**settings, "seed": 8})
        assert other["generated_text"] not in texts

    async def test_headers_carry_the_counts(self, teacher):
        async with teacher.post("/generate", json={"inputs": FRANCE, "parameters": {"max_new_tokens": 3}}) as reply:
            assert set(reply.headers) >= HEADERS
            assert reply.headers["x-prompt-tokens"] == "5"
            assert reply.headers["x-generated-tokens"] == "3"
            assert reply.headers["x-compute-characters"] == str(len(FRANCE))
            total_ms = int(reply.headers["x-total-time"])
            assert 0 < int(reply.headers["x-inference-time"]) <= total_ms
            assert float(reply.headers["x-compute-time"]) * 1000 == pytest.approx(total_ms, abs=1)

    async def test_the_stop_text_is_kept(self, teacher):
        answer = await generate(teacher, COUNT, max_new_tokens=25, stop=["6,"], details=True)
        assert answer["generated_text"] == " 4, 5, 6,"
        assert answer["details"]["finish_reason"] == "stop_sequence"

    async def test_the_end_token_is_in_the_details_but_not_in_the_text(self, teacher):
        answer = await generate(teacher, SAY_OK, max_new_tokens=60, details=True)
        last = answer["details"]["tokens"][-1]
        assert answer["details"]["finish_reason"] == "eos_token"
        assert (last["text"], last["special"]) == ("<|im_end|>", True)
        assert "<|im_end|>" not in answer["generated_text"]
        assert answer["generated_text"] == "".join(token["text"] for token in answer["details"]["tokens"][:-1])

    async def test_exactly_m_tokens_that_end_in_the_closing_token_report_length(self, teacher):
        whole = await generate(teacher, SAY_OK, max_new_tokens=60, details=True)
        m = whole["details"]["generated_tokens"]
        exact = await generate(teacher, SAY_OK, max_new_tokens=m, details=True)
        assert exact["generated_text"] == whole["generated_text"]
        assert exact["details"]["finish_reason"] == "length"

    async def test_return_full_text_puts_the_prompt_in_front(self, teacher):
        answer = await generate(teacher, FRANCE, return_full_text=True)
        assert answer["generated_text"].startswith(FRANCE + " Paris")

    async def test_truncate_keeps_the_end_of_the_prompt(self, teacher):
        body = {"inputs": "noise " * 50 + FRANCE, "parameters": {"max_new_tokens": 2, "truncate": 5}}
        async with teacher.post("/generate", json=body) as reply:
            assert reply.headers["x-prompt-tokens"] == "5"
            assert (await reply.json())["generated_text"].startswith(" Paris")

    async def test_top_tokens_begin_with_the_chosen_one(self, teacher):
        details = (await generate(teacher, FRANCE, top_n_tokens=2, details=True))["details"]
        assert all(len(top) == 2 for top in details["top_tokens"])
        assert [top[0]["id"] for top in details["top_tokens"]] == [token["id"] for token in details["tokens"]]

    async def test_decoder_input_details_contain_the_prompt(self, teacher):
        details = (await generate(teacher, FRANCE, decoder_input_details=True))["details"]
        assert "".join(token["text"] for token in details["prefill"]) == FRANCE

    async def test_a_json_schema_binds_the_answer(self, teacher):
        schema = {
            "type": "object",
            "properties": {"city": {"enum": ["Paris"]}},
            "required": ["city"],
            "additionalProperties": False,
        }
        answer = await generate(teacher, FRANCE, max_new_tokens=30, grammar={"type": "json", "value": schema})
        assert json.loads(answer["generated_text"]) == {"city": "Paris"}

    @pytest.mark.parametrize(
        ("regex", "match"),
        [
            (r"(?:yes|no)\.?", r"(?:yes|no)\.?"),
            (r"[A-C]{2}-\d{3}", r"[A-C]{2}-\d{3}"),
            (r"^(?P<word>[^a-z\s]+)\x21$", r"[^a-z\s]+!"),
            (r"\[(?:a, ?)*b\]", r"\[(?:a, ?)*b\]"),
        ],
    )
    async def test_a_regular_expression_binds_the_answer(self, teacher, regex, match):
        answer = await generate(teacher, FRANCE, max_new_tokens=30, grammar={"type": "regex", "value": regex})
        # A greedy model may repeat until the limit; the text is then the beginning of a match.
        text = answer["generated_text"]
        assert re.fullmatch(match, text) or any(re.fullmatch(match, text + end) for end in ("!", "b]", ", b]"))

    @pytest.mark.parametrize("regex", ["(", "a)", "*", "[a", r"\D", "(?=a)", "\\"])
    async def test_an_invalid_regular_expression_is_a_failed_generation(self, teacher, regex):
        body = {"inputs": FRANCE, "parameters": {"grammar": {"type": "regex", "value": regex}}}
        async with teacher.post("/generate", json=body) as reply:
            assert (reply.status, (await reply.json())["error_type"]) == (424, "generation")

    async def test_the_best_of_two_has_the_higher_mean_log_probability(self, teacher):
        settings = {"best_of": 2, "temperature": 1.5, "max_new_tokens": 12, "details": True}
        answer = await generate(teacher, "Once", **settings)
        (other,) = answer["details"]["best_of_sequences"]
        assert other["generated_text"]
        means = [
            statistics.fmean(token["logprob"] for token in one["tokens"] if token["logprob"] is not None)
            for one in (answer["details"], other)
        ]
        assert means[0] >= means[1]

    async def test_the_root_route_wraps_the_answer_in_a_list(self, teacher):
        async with teacher.post("/", json={"inputs": FRANCE, "parameters": {"max_new_tokens": 2}}) as reply:
            assert [set(each) for each in await reply.json()] == [{"generated_text"}]


class TestRefusals:
    @pytest.mark.parametrize(
        ("parameters", "message"),
        [
            ({"temperature": 0}, "`temperature` must be strictly positive"),
            ({"top_p": 1.0}, "`top_p` must be > 0.0 and < 1.0"),
            ({"top_p": 0}, "`top_p` must be > 0.0 and < 1.0"),
            ({"typical_p": 1.0}, "`typical_p` must be > 0.0 and < 1.0"),
            ({"top_k": 0}, "`top_k` must be strictly positive"),
            ({"repetition_penalty": 0}, "`repetition_penalty` must be strictly positive"),
            ({"frequency_penalty": 2.1}, "`frequency_penalty` must be >= -2.0 and <= 2.0"),
            ({"max_new_tokens": 0}, "`max_new_tokens` must be strictly positive"),
            ({"stop": ["a", "b", "c", "d", "e"]}, "`stop` supports up to 4 stop sequences. Given: 5"),
            ({"top_n_tokens": 6}, "`top_n_tokens` must be >= 0 and <= 5. Given: 6"),
            ({"truncate": 0}, "`truncate` must be strictly positive and less than 511. Given: 0"),
            ({"best_of": 2}, "you must use sampling when `best_of` is > 1"),
            ({"best_of": 2, "do_sample": True, "seed": 1}, "`seed` must not be set when `best_of` > 1"),
            ({"best_of": 3, "do_sample": True}, "`best_of` must be > 0 and <= 2. Given: 3"),
            (
                {"max_new_tokens": 508},
                (
                    "`inputs` tokens + `max_new_tokens` must be <= 512. "
                    "Given: 5 `inputs` tokens and 508 `max_new_tokens`"
                ),
            ),
            (
                {"grammar": {"type": "json", "value": {"type": "object"}}},
                "grammar is not valid: Grammar must have a 'properties' field",
            ),
        ],
    )
    async def test_a_value_outside_the_limits_is_422(self, teacher, parameters, message):
        async with teacher.post("/generate", json={"inputs": FRANCE, "parameters": parameters}) as reply:
            assert reply.status == 422
            assert await reply.json() == {"error": f"Input validation error: {message}", "error_type": "validation"}

    async def test_a_prompt_without_room_for_an_answer_is_422(self, teacher):
        async with teacher.post("/generate", json={"inputs": " a" * 512}) as reply:
            assert reply.status == 422
            assert (await reply.json())["error"] == (
                "Input validation error: `inputs` must have less than 511 tokens. Given: 512"
            )

    async def test_the_longest_prompt_still_gets_one_token(self, teacher):
        async with teacher.post("/generate", json={"inputs": " a" * 511}) as reply:
            assert reply.status == 200
            assert (reply.headers["x-prompt-tokens"], reply.headers["x-generated-tokens"]) == ("511", "1")

    async def test_an_empty_prompt_is_422(self, teacher):
        async with teacher.post("/generate", json={"inputs": "", "parameters": {"max_new_tokens": 1}}) as reply:
            assert reply.status == 422
            assert (await reply.json())["error"] == "Input validation error: `inputs` cannot be empty"

    @pytest.mark.parametrize(
        ("body", "status"),
        [
            (b"{", 400),
            (b'{"inputs": ["a"]}', 422),
            (b'{"inputs": "a", "parameters": {"stop": "a"}}', 422),
            (b'{"inputs": "a", "parameters": {"max_new_tokens": -1}}', 422),
            (b'{"parameters": {}}', 422),
        ],
    )
    @pytest.mark.parametrize("path", ["/generate", "/generate_stream"])
    async def test_a_body_that_cannot_be_read_is_plain_text(self, teacher, path, body, status):
        async with teacher.post(path, data=body, headers={"Content-Type": "application/json"}) as reply:
            assert reply.status == status
            assert reply.content_type == "text/plain"

    async def test_another_content_type_is_415(self, teacher):
        async with teacher.post("/generate", data=b"{}", headers={"Content-Type": "text/plain"}) as reply:
            assert (reply.status, reply.content_type) == (415, "text/plain")

    async def test_a_body_over_two_megabytes_is_413(self, teacher):
        body = io.BytesIO(b'{"inputs": "' + b"a" * 2_000_001 + b'"}')
        async with teacher.post("/generate", data=body, headers={"Content-Type": "application/json"}) as reply:
            assert (reply.status, reply.content_type) == (413, "text/plain")


class TestLoad:
    async def test_more_than_max_concurrent_requests_are_429_at_once(self, teacher):
        limit = 3
        streams = [await teacher.post("/generate_stream", json=LONG) for _ in range(limit)]
        try:
            await until(teacher, "tgi_batch_current_size", limit)
            overload = {"error": "Model is overloaded", "error_type": "overloaded"}
            async with teacher.post("/generate", json=LONG) as reply:
                assert reply.status == 429
                assert "Retry-After" not in reply.headers
                assert await reply.json() == overload
            async with teacher.post("/generate_stream", json=LONG) as reply:
                assert await events(reply) == [overload]
        finally:
            for stream in streams:
                stream.close()
        await until(teacher, "tgi_batch_current_size", 0)
        await generate(teacher, FRANCE)

    @pytest.mark.parametrize(
        ("path", "body"),
        [
            ("/generate", LONG),
            ("/generate_stream", LONG),
            (
                "/v1/chat/completions",
                {"messages": [{"role": "user", "content": "Write a long story."}], "max_tokens": 450},
            ),
        ],
    )
    async def test_a_client_that_leaves_cancels_its_generation(self, teacher, path, body):
        async def call() -> None:
            async with teacher.post(path, json=body) as reply:
                await reply.read()

        async with asyncio.TaskGroup() as group:
            caller = group.create_task(call())
            await until(teacher, "tgi_batch_current_size", 1)
            caller.cancel()
        await until(teacher, "tgi_batch_current_size", 0)
        assert caller.cancelled()


class TestGenerateStream:
    async def test_one_event_for_each_token_and_the_whole_text_in_the_last(self, teacher):
        body = {"inputs": FRANCE, "parameters": {"max_new_tokens": 4, "details": True}}
        async with teacher.post("/generate_stream", json=body) as reply:
            received = await events(reply)
        assert [event["index"] for event in received] == [1, 2, 3, 4]
        assert [event["generated_text"] for event in received[:-1]] == [None] * 3
        assert received[-1]["generated_text"] == "".join(event["token"]["text"] for event in received)
        assert received[-1]["details"] == {
            "finish_reason": "length",
            "generated_tokens": 4,
            "seed": None,
            "input_length": 5,
        }

    async def test_without_details_the_last_event_has_none(self, teacher):
        body = {"inputs": FRANCE, "parameters": {"max_new_tokens": 2}}
        async with teacher.post("/generate_stream", json=body) as reply:
            assert (await events(reply))[-1]["details"] is None

    @pytest.mark.parametrize(
        ("parameters", "message"),
        [
            ({"max_new_tokens": 0}, "`max_new_tokens` must be strictly positive"),
            ({"best_of": 2}, "`best_of` != 1 is not supported when streaming tokens"),
            ({"decoder_input_details": True}, "`decoder_input_details` == true is not supported when streaming tokens"),
        ],
    )
    async def test_a_refusal_is_an_event_under_200(self, teacher, parameters, message):
        async with teacher.post("/generate_stream", json={"inputs": FRANCE, "parameters": parameters}) as reply:
            assert await events(reply) == [{"error": f"Input validation error: {message}", "error_type": "validation"}]


def chat(*turns: tuple[str, str], **settings: Any) -> dict[str, Any]:
    messages = [{"role": role, "content": content} for role, content in turns]
    return {"messages": messages, "temperature": 0, "max_tokens": 8, **settings}


class TestChat:
    async def test_a_reply_has_usage_and_an_empty_id(self, teacher):
        async with teacher.post("/v1/chat/completions", json=chat(("user", "Say OK."), max_tokens=60)) as reply:
            assert reply.headers["x-generated-tokens"]
            answer = await reply.json()
        assert answer["id"] == ""
        assert answer["object"] == "chat.completion"
        assert answer["choices"][0]["message"]["role"] == "assistant"
        assert answer["choices"][0]["finish_reason"] == "stop"
        usage = answer["usage"]
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]

    async def test_a_trailing_assistant_message_is_continued_and_not_repeated(self, teacher):
        turns = ("user", "What is the capital of France?"), ("assistant", "The capital of France is")
        async with teacher.post("/v1/chat/completions", json=chat(*turns)) as reply:
            assert (await reply.json())["choices"][0]["message"]["content"].startswith(" Paris")

    async def test_the_end_of_the_continued_message_is_trimmed(self, teacher):
        texts = []
        for content in ("The capital of France is", "The capital of France is \n\n"):
            turns = ("user", "What is the capital of France?"), ("assistant", content)
            async with teacher.post("/chat_tokenize", json=chat(*turns)) as reply:
                texts.append((await reply.json())["templated_text"])
        assert texts[0] == texts[1]
        assert texts[0].endswith("<|im_start|>assistant\nThe capital of France is")

    async def test_a_short_trailing_message_can_match_inside_the_opened_turn(self, teacher):
        async with teacher.post("/chat_tokenize", json=chat(("user", "Hi"), ("assistant", "a"))) as reply:
            assert (await reply.json())["templated_text"].endswith("<|im_start|>assista")

    async def test_a_stop_sequence_keeps_its_name(self, teacher):
        turns = ("user", "Count."), ("assistant", "1, 2, 3,")
        async with teacher.post("/v1/chat/completions", json=chat(*turns, stop=["6,"], max_tokens=25)) as reply:
            choice = (await reply.json())["choices"][0]
        assert choice["message"]["content"].endswith("6,")
        assert choice["finish_reason"] == "stop_sequence"

    async def test_a_stream_has_the_role_in_every_delta_and_ends_with_done(self, teacher):
        async with teacher.post("/v1/chat/completions", json=chat(("user", "Say OK."), stream=True)) as reply:
            *chunks, done = await events(reply)
        assert done == "[DONE]"
        assert {chunk["id"] for chunk in chunks} == {""}
        assert {chunk["choices"][0]["delta"]["role"] for chunk in chunks} == {"assistant"}
        assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * 7 + ["length"]
        assert all(chunk["usage"] is None for chunk in chunks)

    async def test_include_usage_adds_a_chunk_without_choices(self, teacher):
        body = chat(("user", "Say OK."), stream=True, stream_options={"include_usage": True}, max_tokens=3)
        async with teacher.post("/v1/chat/completions", json=body) as reply:
            *_, last, _done = await events(reply)
        assert last["choices"] == []
        assert last["usage"]["completion_tokens"] == 3

    async def test_temperature_0_is_greedy_here(self, teacher):
        texts = set()
        for _ in range(2):
            async with teacher.post("/v1/chat/completions", json=chat(("user", "Tell me a story."))) as reply:
                texts.add((await reply.json())["choices"][0]["message"]["content"])
        assert len(texts) == 1

    async def test_presence_penalty_becomes_a_repetition_penalty_two_higher(self, teacher):
        body = chat(("user", "Say OK."), presence_penalty=-2.0)
        async with teacher.post("/v1/chat/completions", json=body) as reply:
            assert reply.status == 422
            assert "`repetition_penalty` must be strictly positive" in (await reply.json())["error"]

    async def test_an_error_in_a_stream_is_422_followed_by_done(self, teacher):
        async with teacher.post("/v1/chat/completions", json=chat(("user", "x"), stream=True, top_p=1)) as reply:
            error, done = await events(reply)
        assert error["error"]["http_status_code"] == 422
        assert done == "[DONE]"

    @pytest.mark.parametrize(
        "fields",
        [
            {"max_completion_tokens": 8},
            {"max_completion_tokens": None},
            {"logit_bias": {"50": 1}},
            {"stream_options": None},
            {"response_format": {"type": "text"}},
            {"response_format": {"type": "json_object"}},
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {}}}},
            {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": None}]},
            {"messages": [{"role": "assistant", "tool_calls": [{"id": "0", "type": "function"}]}]},
        ],
    )
    @pytest.mark.parametrize("path", ["/v1/chat/completions", "/chat_tokenize"])
    async def test_values_that_the_router_cannot_read_are_plain_text(self, teacher, path, fields):
        async with teacher.post(path, json=chat(("user", "Hi")) | fields) as reply:
            assert (reply.status, reply.content_type) == (422, "text/plain")
            assert (await reply.text()).startswith("Failed to deserialize the JSON body into the target type: ")

    async def test_fields_that_are_not_used_are_accepted(self, teacher):
        async with teacher.post("/v1/chat/completions", json=chat(("user", "Hi"), n=2, logit_bias=[1.0])) as reply:
            assert len((await reply.json())["choices"]) == 1

    async def test_a_chat_without_messages_is_the_template_alone(self, teacher):
        async with teacher.post("/v1/chat/completions", json=chat()) as reply:
            assert reply.status == 200, await reply.text()

    async def test_tool_calls_without_content_are_rendered_as_json(self, teacher):
        call = {"id": "0", "type": "function", "function": {"name": "look", "arguments": {"at": 1}}}
        messages = [{"role": "user", "content": "Look."}, {"role": "assistant", "content": None, "tool_calls": [call]}]
        body = {"messages": [*messages, {"role": "user", "content": "Go on."}]}
        async with teacher.post("/chat_tokenize", json=body) as reply:
            assert '"name":"look","arguments":"{\\"at\\":1}"' in (await reply.json())["templated_text"]


LOOK = {
    "type": "function",
    "function": {
        "name": "look",
        "description": "Look at a place.",
        "parameters": {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"]},
    },
}


class TestTools:
    @pytest.mark.parametrize("choice", ["required", "look", {"type": "function", "function": {"name": "look"}}])
    async def test_a_required_call_is_generated(self, teacher, choice):
        body = chat(("user", "Look at Paris."), tools=[LOOK], tool_choice=choice, max_tokens=60)
        async with teacher.post("/v1/chat/completions", json=body) as reply:
            assert reply.status == 200, await reply.text()
            message = (await reply.json())["choices"][0]["message"]
        (call,) = message["tool_calls"]
        assert "content" not in message
        assert (call["id"], call["type"], call["function"]["name"]) == ("0", "function", "look")
        assert json.loads(call["function"]["arguments"])["city"] in {"Paris", "Rome"}

    async def test_a_streamed_call_has_its_name_in_the_first_part_and_no_finish_reason(self, teacher):
        body = chat(("user", "Look at Paris."), tools=[LOOK], tool_choice="required", max_tokens=60, stream=True)
        async with teacher.post("/v1/chat/completions", json=body) as reply:
            *chunks, done = await events(reply)
        calls = [chunk["choices"][0]["delta"]["tool_calls"][0]["function"] for chunk in chunks]
        assert [call["name"] for call in calls] == ["look"] + [None] * (len(calls) - 1)
        assert json.loads("".join(call["arguments"] for call in calls))["city"] in {"Paris", "Rome"}
        assert {chunk["choices"][0]["finish_reason"] for chunk in chunks} == {None}
        assert done == "[DONE]"

    @pytest.mark.parametrize("stream", [False, True])
    async def test_with_no_tool_the_chat_is_answered_without_tools(self, teacher, stream):
        """An empty list of tools offers `no_tool` alone."""
        texts = []
        for more in ({"tools": []}, {"tools": [LOOK], "tool_choice": "none"}, {}):
            body = chat(("user", "Say OK."), max_tokens=30, stream=stream) | more
            async with teacher.post("/v1/chat/completions", json=body) as reply:
                assert reply.status == 200, await reply.text()
                if stream:
                    *chunks, _ = await events(reply)
                    texts.append("".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks))
                else:
                    texts.append((await reply.json())["choices"][0]["message"]["content"])
        assert texts[0]
        assert texts == [texts[0]] * 3

    @pytest.mark.parametrize(
        ("fields", "error_type"),
        [
            ({"tool_choice": "other"}, "tool_error"),
            ({"tool_choice": "required", "max_tokens": 2}, "tool_error"),
            ({"response_format": {"type": "json", "value": {"properties": {}}}}, "tool_error"),
        ],
    )
    async def test_tools_that_cannot_be_used_are_a_tool_error(self, teacher, fields, error_type):
        body = chat(("user", "x"), tools=[LOOK]) | fields
        async with teacher.post("/v1/chat/completions", json=body) as reply:
            assert (reply.status, (await reply.json())["error_type"]) == (422, error_type)

    @pytest.mark.parametrize("fields", [{"tools": [{}]}, {"tool_choice": 5}, {"tool_choice": {"type": "other"}}])
    async def test_tools_that_cannot_be_read_are_plain_text(self, teacher, fields):
        async with teacher.post("/v1/chat/completions", json=chat(("user", "x"), tools=[LOOK]) | fields) as reply:
            assert (reply.status, reply.content_type) == (422, "text/plain")


class TestTheRest:
    async def test_info_reports_the_limits(self, teacher):
        async with teacher.get("/info") as reply:
            info = await reply.json()
        assert info["max_concurrent_requests"] == 3
        assert (info["max_input_tokens"], info["max_total_tokens"]) == (511, 512)
        assert info["max_stop_sequences"] == 4
        assert info["model_id"] == "smollm2-135m-instruct"

    async def test_health_is_empty(self, teacher):
        async with teacher.get("/health") as reply:
            assert (reply.status, await reply.read()) == (200, b"")

    async def test_tokenize_returns_positions_in_bytes(self, teacher):
        text = "Zürich is a city"
        async with teacher.post("/tokenize", json={"inputs": text}) as reply:
            tokens = await reply.json()
        data = text.encode()
        assert all(data[token["start"] : token["stop"]].decode() == token["text"] for token in tokens if token["text"])
        assert tokens[-1]["stop"] == len(data)

    async def test_several_prompts_are_completed_in_one_call(self, teacher):
        body = {"prompt": [FRANCE, COUNT], "max_tokens": 2, "temperature": 0}
        async with teacher.post("/v1/completions", json=body) as reply:
            answer = await reply.json()
        assert [choice["index"] for choice in answer["choices"]] == [0, 1]
        assert answer["choices"][0]["text"].startswith(" Paris")
        assert answer["usage"]["completion_tokens"] == 4

    async def test_more_prompts_than_the_batch_limit_are_422(self, teacher):
        async with teacher.post("/v1/completions", json={"prompt": ["a"] * 5}) as reply:
            assert (reply.status, (await reply.json())["error_type"]) == (422, "batch size exceeded")

    async def test_a_streamed_completion_has_finish_reason_eos_token(self, teacher):
        body = {"prompt": SAY_OK, "max_tokens": 60, "temperature": 0, "stream": True}
        async with teacher.post("/v1/completions", json=body) as reply:
            *chunks, last, done = await events(reply)
        assert (last["choices"][0]["text"], last["choices"][0]["finish_reason"]) == ("<|im_end|>", "eos_token")
        assert last["usage"]["completion_tokens"] == len(chunks) + 1
        assert not any("usage" in chunk for chunk in chunks)
        assert done == "[DONE]"

    async def test_a_completion_has_all_headers_but_the_compute_time(self, teacher):
        async with teacher.post("/v1/completions", json={"prompt": COUNT, "max_tokens": 2}) as reply:
            assert {name for name in reply.headers if name.startswith("x-")} == HEADERS - {"x-compute-time"}

    @pytest.mark.parametrize(("path", "status"), [("/nowhere", 404), ("/generate", 405)])
    async def test_an_unknown_route_has_an_empty_body(self, teacher, path, status):
        async with teacher.get(path) as reply:
            assert (reply.status, await reply.read()) == (status, b"")
