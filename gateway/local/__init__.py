"""The embedded stack: small real models and a private Redis on this machine, for `gkt-gateway demo` and the tests.

`weights.py` fetches the models, `redis.py` runs Redis, and `stack.py` runs the engines as child processes. Both engines
are llama.cpp's OpenAI server, `llama_server.py`.
"""

from __future__ import annotations

from gateway.errors import StartupError


class WeightsUnavailable(StartupError):
    """No source has usable weights of a model. The message states the attempts and the remedy."""

    label = "weights_unavailable"


class ChildFailed(StartupError):
    """A child process did not become ready. The message ends with the end of its log."""

    label = "child_failed"
