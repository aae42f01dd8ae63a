"""The scenarios for the unmodified `langchain-openai`. See programs.py."""

from __future__ import annotations

from typing import Any

import scenarios
from langchain_core.messages import AIMessageChunk, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel

PLAN = scenarios.plan()


def model(name: str, **more: Any) -> ChatOpenAI:
    return ChatOpenAI(**({"model": name, "base_url": PLAN["base_url"], "api_key": PLAN["key"]} | more))


class Person(BaseModel):
    """A person."""

    name: str
    born: int


@tool
def weather(city: str) -> str:
    """The weather in a city."""
    return f"sunny in {city}"


def answer(question: str) -> Any:
    message = model("chat", include_response_headers=True, max_tokens=50).invoke(question)
    headers = message.response_metadata["headers"]
    return {"text": message.content, "usage": message.usage_metadata, "id": message.id,
            "mode": headers["x-gkt-mode"], "metadata": message.response_metadata}  # fmt: skip


async def async_answer(question: str) -> Any:
    return (await model("chat").ainvoke(question)).content


def stream(question: str) -> Any:
    chunks = list(model("chat").stream(question))
    return {"texts": [chunk.content for chunk in chunks], "usage": [chunk.usage_metadata for chunk in chunks],
            "finishes": _finishes(chunks)}  # fmt: skip


async def async_stream(question: str) -> Any:
    chunks = [chunk async for chunk in model("chat", stream_usage=True).astream(question)]
    seen = str([(chunk.response_metadata, chunk.additional_kwargs) for chunk in chunks])
    return {"texts": [chunk.content for chunk in chunks], "gkt": "baseline" in seen,
            "usage": [chunk.usage_metadata for chunk in chunks if chunk.usage_metadata]}  # fmt: skip


def tools(question: str) -> Any:
    bound = model("tools").bind_tools([weather])
    human_message = HumanMessage(question)
    called = bound.invoke([human_message])
    tool_message = ToolMessage("sunny", tool_call_id=called.tool_calls[0]["id"])
    return {"calls": called.tool_calls, "answer": bound.invoke([human_message, called, tool_message]).content}


def tools_streamed(question: str) -> Any:
    whole = AIMessageChunk(content="")
    for chunk in model("tools").bind_tools([weather]).stream(question):
        whole += chunk  # type: ignore[assignment]
    return whole.tool_calls


def structured(question: str) -> Any:
    return model("person").with_structured_output(Person).invoke(question).model_dump()  # type: ignore[union-attr]


def batch(question: str) -> Any:
    return [message.content for message in model("chat").batch([question, question, question])]


def busy_twice(question: str) -> Any:
    return model("busy-twice").invoke(question).content


def no_retries(question: str) -> Any:
    return model("busy", max_retries=0).invoke(question).content


def impatient(question: str) -> Any:
    return model("slow", timeout=1, max_retries=1).invoke(question).content


def breaks(question: str) -> Any:
    return _collect(model("breaks"), question)


def ends_early(question: str) -> Any:
    return _collect(model("ends-early"), question)


def wire_cut(question: str) -> Any:
    return _collect(model("wire-cut"), question)


def _collect(chat: ChatOpenAI, question: str) -> Any:
    chunks: list[Any] = []
    broke = None
    try:
        for chunk in chat.stream(question):
            chunks.append(chunk)  # noqa: PERF402
    except Exception as error:  # noqa: BLE001
        broke = scenarios.describe(error)
    return {"text": "".join(chunk.content for chunk in chunks), "finishes": _finishes(chunks), "broke": broke}


def _finishes(chunks: list[Any]) -> list[str]:
    reasons = (chunk.response_metadata.get("finish_reason") for chunk in chunks)
    return [reason for reason in reasons if reason]


async def refuse(refusal: dict[str, Any]) -> Any:
    more = {name: refusal[name] for name in ("temperature", "max_retries") if refusal[name] is not None}
    return (await model(refusal["model"], api_key=refusal["key"], **more).ainvoke(refusal["question"])).content


if __name__ == "__main__":
    played = (answer, async_answer, stream, async_stream, tools, tools_streamed, structured, batch, busy_twice,
              no_retries, impatient, breaks, ends_early, wire_cut)  # fmt: skip
    scenarios.play(PLAN, {scenario.__name__: scenario for scenario in played}, refuse)
