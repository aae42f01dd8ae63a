"""The client for devices that run the student: the gateway gives guidance, the device completes the answer.

Paper, Figure 1.

    student = UrlStudent("http://127.0.0.1:8081/v1")
    async with EdgeClient("https://gateway.example.com", key=key, student=student) as edge:
        async for chunk in edge.stream({"model": "chat", "messages": [...], "temperature": 0.7}):
            ...

Start reading at `client.py`: one answer from guidance to the usage report.

The package belongs to the gateway and is also a distribution of its own (`edge/`). It imports only the standard
library, httpx, and gateway modules without other dependencies. It calls a student and joins answers as the gateway
does.
"""

from gateway.edge.blocking import Edge
from gateway.edge.client import EdgeClient
from gateway.edge.errors import EdgeError, GatewayRefused, VersionRefused
from gateway.edge.queue import Synced
from gateway.edge.student import LlamaStudent, UrlStudent

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
