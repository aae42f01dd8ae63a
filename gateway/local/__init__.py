"""The embedded stack: small real models and a private Redis on this machine, for `gkt-gateway demo` and the tests.

`weights.py` fetches the models, `redis.py` runs Redis, and `stack.py` runs the engines as child processes. `student.py`
is llama.cpp's OpenAI server. `teacher.py` is the protocol of text-generation-inference (TGI) over llama.cpp.

The teacher implements TGI's protocol only. Batching, speed, sampling details and token boundaries are llama.cpp's.
"""

from __future__ import annotations

from gateway.errors import StartupError


class WeightsUnavailable(StartupError):
    """No source has usable weights of a model. The message states the attempts and the remedy."""

    label = "weights_unavailable"


class ChildFailed(StartupError):
    """A child process did not become ready. The message ends with the end of its log."""

    label = "child_failed"
