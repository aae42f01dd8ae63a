"""The scenarios for the unmodified LiteLLM SDK. See programs.py."""

from __future__ import annotations

import logging
from typing import Any

import litellm
import scenarios
from pydantic import BaseModel

PLAN = scenarios.plan()
WEATHER = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}


class Person(BaseModel):
    """A person."""

    name: str
    born: int


def arguments_for(name: str, question: str, **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": question}]
    return {"model": f"openai/{name}", "api_base": PLAN["base_url"], "api_key": PLAN["key"], "messages": messages,
            **more}  # fmt: skip


def answer(question: str) -> Any:
    reply = litellm.completion(**arguments_for("chat", question))
    headers = reply._hidden_params["additional_headers"]
    return {"text": reply.choices[0].message.content, "usage": reply.usage.model_dump(), "id": reply.id,
            "mode": headers["llm_provider-x-gkt-mode"], "request_id": headers["llm_provider-x-request-id"],
            "model": reply.model, "cost": reply._hidden_params.get("response_cost")}  # fmt: skip


async def async_answer(question: str) -> Any:
    return (await litellm.acompletion(**arguments_for("chat", question))).choices[0].message.content


def stream(question: str) -> Any:
    events = litellm.completion(**arguments_for("chat", question, stream=True, stream_options={"include_usage": True}))
    headers = events._hidden_params["additional_headers"]
    chunks = list(events)
    return {"texts": _texts(chunks), "finishes": _finishes(chunks), "last": chunks[-1].model_dump(),
            "mode": headers["llm_provider-x-gkt-mode"]}  # fmt: skip


async def async_stream(question: str) -> Any:
    chunks = [chunk async for chunk in await litellm.acompletion(**arguments_for("chat", question, stream=True))]
    return {"texts": _texts(chunks), "finishes": _finishes(chunks)}


def tools(question: str) -> Any:
    choice = litellm.completion(**arguments_for("tools", question, tools=[WEATHER])).choices[0]
    return {"finish": choice.finish_reason, "calls": _calls(choice.message)}


def tools_streamed(question: str) -> Any:
    chunks = list(litellm.completion(**arguments_for("tools", question, tools=[WEATHER], stream=True)))
    choice = litellm.stream_chunk_builder(chunks).choices[0]
    return {"finish": choice.finish_reason, "calls": _calls(choice.message)}


def structured(question: str) -> Any:
    reply = litellm.completion(**arguments_for("person", question, response_format=Person))
    return Person.model_validate_json(reply.choices[0].message.content).model_dump()


def busy_twice(question: str) -> Any:
    return litellm.completion(**arguments_for("busy-twice", question)).choices[0].message.content


def no_retries(question: str) -> Any:
    return litellm.completion(**arguments_for("busy", question, max_retries=0))


def impatient(question: str) -> Any:
    return litellm.completion(**arguments_for("slow", question, timeout=1, max_retries=1))


def breaks(question: str) -> Any:
    return _collect("breaks", question)


def ends_early(question: str) -> Any:
    return _collect("ends-early", question)


def wire_cut(question: str) -> Any:
    return _collect("wire-cut", question)


def _collect(name: str, question: str) -> Any:
    chunks: list[Any] = []
    broke = None
    try:
        for chunk in litellm.completion(**arguments_for(name, question, stream=True)):
            chunks.append(chunk)  # noqa: PERF402
    except Exception as error:  # noqa: BLE001
        broke = scenarios.describe(error)
    return {"text": "".join(_texts(chunks)), "finishes": _finishes(chunks), "broke": broke}


def _texts(chunks: list[Any]) -> list[str]:
    return [choice.delta.content for chunk in chunks for choice in chunk.choices if choice.delta.content]


def _finishes(chunks: list[Any]) -> list[str]:
    return [choice.finish_reason for chunk in chunks for choice in chunk.choices if choice.finish_reason]


def _calls(message: Any) -> list[Any]:
    return [{"id": call.id, "name": call.function.name, "arguments": call.function.arguments}
            for call in message.tool_calls]  # fmt: skip


async def refuse(refusal: dict[str, Any]) -> Any:
    more = {name: refusal[name] for name in ("temperature", "max_retries") if refusal[name] is not None}
    return await litellm.acompletion(
        **arguments_for(refusal["model"], refusal["question"], **more) | {"api_key": refusal["key"]}
    )


if __name__ == "__main__":
    litellm.suppress_debug_info = True  # it prints where to ask for help, on stdout
    logging.getLogger("LiteLLM").setLevel(logging.CRITICAL)
    played = (answer, async_answer, stream, async_stream, tools, tools_streamed, structured, busy_twice, no_retries,
              impatient, breaks, ends_early, wire_cut)  # fmt: skip
    scenarios.play(PLAN, {scenario.__name__: scenario for scenario in played}, refuse)
