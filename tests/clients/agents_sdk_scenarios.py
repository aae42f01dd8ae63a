"""The scenarios for the unmodified `openai-agents` with its defaults. See programs.py."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import scenarios
from agents import Agent, ModelSettings, OpenAIProvider, RunConfig, Runner, function_tool
from openai import AsyncOpenAI
from pydantic import BaseModel

PLAN = scenarios.plan()
os.environ |= {"OPENAI_BASE_URL": PLAN["base_url"], "OPENAI_API_KEY": PLAN["key"], "OPENAI_AGENTS_DISABLE_TRACING": "1"}


class Person(BaseModel):
    """A person."""

    name: str
    born: int


@function_tool
def weather(city: str) -> str:
    """The weather in a city."""
    return f"sunny in {city}"


def agent(model: str, **more: Any) -> Agent[None]:
    return Agent(name="Helper", instructions="Be brief.", model=model, **more)


def with_client(**options: Any) -> RunConfig:
    """Return the configuration of a run whose client has other options than the default one."""
    client = AsyncOpenAI(**options)
    return RunConfig(model_provider=OpenAIProvider(openai_client=client))


async def answer(question: str) -> Any:
    result = await Runner.run(agent("chat"), question)
    usage = result.context_wrapper.usage
    return {"text": result.final_output, "usage": {"requests": usage.requests, "output_tokens": usage.output_tokens}}


async def stream(question: str) -> Any:
    return await _collect(agent("chat"), question)


async def conversation(question: str) -> Any:
    first = await Runner.run(agent("chat-student"), "What was first?")
    return (await Runner.run(agent("chat-student"), [*first.to_input_list(), _user(question)])).final_output


async def tools(question: str) -> Any:
    result = await Runner.run(agent("tools", tools=[weather]), question)
    return {"text": result.final_output, "items": [item.type for item in result.new_items]}


async def tools_streamed(question: str) -> Any:
    return await _collect(agent("tools", tools=[weather]), question)


async def structured(question: str) -> Any:
    return (await Runner.run(agent("person", output_type=Person), question)).final_output.model_dump()


async def busy_twice(question: str) -> Any:
    return (await Runner.run(agent("busy-twice"), question)).final_output


async def no_retries(question: str) -> Any:
    return (await Runner.run(agent("busy"), question, run_config=with_client(max_retries=0))).final_output


async def impatient(question: str) -> Any:
    config = with_client(timeout=1, max_retries=1)
    return (await Runner.run(agent("slow"), question, run_config=config)).final_output


async def cancelled(question: str) -> Any:
    result = Runner.run_streamed(agent("gradual"), question)
    async for event in result.stream_events():
        if event.type == "raw_response_event" and event.data.type == "response.output_text.delta":
            result.cancel()
    await asyncio.sleep(0)
    return result.is_complete


async def breaks(question: str) -> Any:
    return await _collect(agent("breaks"), question)


async def ends_early(question: str) -> Any:
    return await _collect(agent("ends-early"), question)


async def wire_cut(question: str) -> Any:
    return await _collect(agent("wire-cut"), question)


def _user(question: str) -> Any:
    return {"role": "user", "content": question}


async def _collect(streaming: Agent[None], question: str) -> Any:
    result = Runner.run_streamed(streaming, question)
    texts, items, broke = [], [], None
    try:
        async for event in result.stream_events():
            if event.type == "raw_response_event" and event.data.type == "response.output_text.delta":
                texts.append(event.data.delta)
            elif event.type == "run_item_stream_event":
                items.append(event.name)
    except Exception as error:  # noqa: BLE001
        broke = scenarios.describe(error)
    return {"texts": texts, "items": items, "broke": broke, "final": None if broke else result.final_output}


async def refuse(refusal: dict[str, Any]) -> Any:
    retries = {} if refusal["max_retries"] is None else {"max_retries": refusal["max_retries"]}
    settings = ModelSettings(temperature=refusal["temperature"])
    config = with_client(api_key=refusal["key"], **retries)
    result = await Runner.run(agent(refusal["model"], model_settings=settings), refusal["question"], run_config=config)
    return result.final_output


if __name__ == "__main__":
    played = (answer, stream, conversation, tools, tools_streamed, structured, busy_twice, no_retries, impatient,
              cancelled, breaks, ends_early, wire_cut)  # fmt: skip
    scenarios.play(PLAN, {scenario.__name__: scenario for scenario in played}, refuse)
