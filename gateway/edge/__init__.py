"""The client for devices that run the student: the gateway gives guidance, the device completes the answer.

Paper, Figure 1.

    student = UrlStudent("http://127.0.0.1:8081/v1")
    async with EdgeClient("https://gateway.example.com", key=key, student=student) as edge:
        async for chunk in edge.stream({"model": "chat", "messages": [...], "temperature": 0.7}):
            ...

    client.py     one answer: guidance, the student's continuation, and the usage report; start reading here
    blocking.py   the client without asyncio
    link.py       requests to the gateway
    guidance.py   the gateway's reply
    student.py    a student behind a server with OpenAI's chat completions API
    llama.py      a student in this process, through llama.cpp
    http.py       HTTP calls to the student's server
    placing.py    the bodies for the gateway and for the student
    relay.py      the answer's chunks in OpenAI's format
    usage.py      the usage report of an answer
    queue.py      reports stored until the gateway accepts them
    errors.py     exceptions

The package belongs to the gateway and is also a distribution of its own (`edge/`). It imports only the standard
library, httpx, and gateway modules without other dependencies. It calls a student and joins answers as the gateway
does.
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
