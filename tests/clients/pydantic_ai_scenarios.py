"""The scenarios for the unmodified `pydantic-ai` with an `openai:` model. See programs.py."""

from __future__ import annotations

import os
from typing import Any

import scenarios
from openai import AsyncOpenAI
from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.models.openai import OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

PLAN = scenarios.plan()
os.environ |= {"OPENAI_BASE_URL": PLAN["base_url"], "OPENAI_API_KEY": PLAN["key"]}


class Person(BaseModel):
    """A person."""

    name: str
    born: int


def weather(city: str) -> str:
    """The weather in a city."""
    return f"sunny in {city}"


def agent(model: str, **more: Any) -> Agent[None, Any]:
    return Agent(f"openai:{model}", **more)


def with_client(model: str, **options: Any) -> Agent[None, Any]:
    """Return an agent whose client has other options than the default one."""
    provider = OpenAIProvider(openai_client=AsyncOpenAI(**options))
    return Agent(OpenAIResponsesModel(model, provider=provider))


async def answer(question: str) -> Any:
    result = await agent("chat", instructions="Be brief.").run(question)
    reply = result.response
    return {"text": result.output, "output_tokens": result.usage.output_tokens, "finish": reply.finish_reason,
            "id": reply.provider_response_id}  # fmt: skip


async def stream(question: str) -> Any:
    return await _collect(agent("chat"), question)


async def conversation(question: str) -> Any:
    first = await agent("chat-student").run("What was first?")
    return (await agent("chat-student").run(question, message_history=first.all_messages())).output


async def tools(question: str) -> Any:
    result = await agent("tools", tools=[weather]).run(question)
    parts = [part.part_kind for message in result.all_messages() for part in message.parts]
    return {"text": result.output, "parts": parts}


async def tools_streamed(question: str) -> Any:
    return await _collect(agent("tools", tools=[weather]), question)


async def structured(question: str) -> Any:
    return (await agent("person", output_type=NativeOutput(Person)).run(question)).output.model_dump()


async def structured_streamed(question: str) -> Any:
    async with agent("person", output_type=NativeOutput(Person)).run_stream(question) as result:
        return (await result.get_output()).model_dump()


async def busy_twice(question: str) -> Any:
    return (await agent("busy-twice").run(question)).output


async def no_retries(question: str) -> Any:
    return (await with_client("busy", max_retries=0).run(question)).output


async def impatient(question: str) -> Any:
    return (await with_client("slow", timeout=1, max_retries=1).run(question)).output


async def cancelled(question: str) -> Any:
    async with agent("gradual").run_stream(question) as result:
        async for text in result.stream_text(delta=True, debounce_by=None):
            return text
    return None


async def breaks(question: str) -> Any:
    return await _collect(agent("breaks"), question)


async def ends_early(question: str) -> Any:
    return await _collect(agent("ends-early"), question)


async def wire_cut(question: str) -> Any:
    return await _collect(agent("wire-cut"), question)


async def _collect(streaming: Agent[None, Any], question: str) -> Any:
    texts, broke, finish = [], None, None
    try:
        async with streaming.run_stream(question) as result:
            async for text in result.stream_text(delta=True, debounce_by=None):
                texts.append(text)  # noqa: PERF401
            finish = result.response.finish_reason
    except Exception as error:  # noqa: BLE001
        broke = scenarios.describe(error)
    return {"texts": texts, "broke": broke, "finish": finish}


async def refuse(refusal: dict[str, Any]) -> Any:
    retries = {} if refusal["max_retries"] is None else {"max_retries": refusal["max_retries"]}
    settings: Any = {} if refusal["temperature"] is None else {"temperature": refusal["temperature"]}
    asking = with_client(refusal["model"], api_key=refusal["key"], **retries)
    return (await asking.run(refusal["question"], model_settings=settings)).output


if __name__ == "__main__":
    played = (answer, stream, conversation, tools, tools_streamed, structured, structured_streamed, busy_twice,
              no_retries, impatient, cancelled, breaks, ends_early, wire_cut)  # fmt: skip
    scenarios.play(PLAN, {scenario.__name__: scenario for scenario in played}, refuse)
