"""The client for devices that run the student themselves: the gateway guides, the device answers (paper, Figure 1).

    student = UrlStudent("http://127.0.0.1:8081/v1")
    async with EdgeClient("https://gateway.example.com", key=key, student=student) as edge:
        async for chunk in edge.stream({"model": "chat", "messages": [...], "temperature": 0.7}):
            ...

    client.py     one answer: guidance, the student's words behind it, and the account; read it first
    blocking.py   the same without asyncio
    link.py       what is said to the gateway, and what becomes of it
    guidance.py   what it answers
    student.py    a student behind any server that speaks OpenAI's chat completions
    llama.py      ... in this process, through llama.cpp
    http.py       the calls to that server
    placing.py    what the student is sent
    relay.py      one answer out of both, in OpenAI's chunks
    usage.py      what the gateway is told of an answer
    queue.py      ... and where that waits while the gateway cannot be reached
    errors.py     what it raises

It is a part of the gateway's package, and a distribution of its own besides (`edge/`): what it imports is Python's,
httpx, and modules of the gateway that import nothing else. It asks a student as the gateway does, and joins alike.
"""

from gateway.edge.blocking import Edge
from gateway.edge.client import EdgeClient
from gateway.edge.errors import EdgeError, GatewayRefused, VersionRefused
from gateway.edge.llama import LlamaStudent
from gateway.edge.queue import Synced
from gateway.edge.student import UrlStudent

__all__ = [
    "Edge",
    "EdgeClient",
    "EdgeError",
    "GatewayRefused",
    "LlamaStudent",
    "Synced",
    "UrlStudent",
    "VersionRefused",
]
