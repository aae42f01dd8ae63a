"""Reject names that an engine treats as the number of answers, the token limit or another field that the gateway reads.

The gateway reserves and counts by the fields of its structs. A field that it forwards without reading must not change
that. docs/reference/request-fields.md shows the table; a test compares.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from gateway.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Mapping

ALIASES = {
    # llama.cpp; Transformers; TensorRT-LLM.
    "n": ("n_cmpl", "num_return_sequences", "num_beams", "beam_width"),
    # llama.cpp; Ollama; TGI and Transformers; SGLang, LMDeploy and KoboldCpp; Anthropic.
    "max_tokens": (
        "n_predict", "num_predict", "max_new_tokens", "max_output_tokens", "max_length", "max_tokens_to_sample",
        "generation_config",
    ),
}  # fmt: skip
"""The names that some engines have for a field, by that field.

`generation_config` is an object or text with several.
"""
HOLDERS = ("extra_body", "nvext", "options", "parameters", "sampling_params")
"""Objects whose fields some engines or clients treat as fields of the body."""
_NOT_HELD = ("model", "n", "best_of", "max_tokens", "max_completion_tokens")
REFUSED = {alias: name for name, aliases in ALIASES.items() for alias in aliases}
"""The field to send, by the alias."""
REFUSED_IN_HOLDER = {**REFUSED, **{name: name for name in _NOT_HELD}}
"""The field to send, by its name in a holder. The gateway reads nothing there."""


def check_names(body: Mapping[str, Any], fields: tuple[str, ...]) -> None:
    """Reject other names of the fields that the gateway reads.

    Some engines ignore the case of names, so a name in another case is another name.

    Args:
        body: the body as the caller sent it. An alias whose value is null counts as absent.
        fields: the fields that the gateway reads on this route.

    Raises:
        InvalidRequest: `param` is the rejected field; the message names its replacement.
    """
    meanings = _meanings(fields)
    for name, value in body.items():
        if (
            name not in fields
            and (replacement := meanings.get(name.casefold()))
            and not (value is None and name in REFUSED)
        ):
            raise _refusal(name, replacement)
    if "max_tokens" not in fields:
        return  # the route generates no tokens
    for holder in HOLDERS:
        if isinstance(held := body.get(holder), dict):
            for name, value in held.items():
                if value is not None and (replacement := REFUSED_IN_HOLDER.get(name.casefold())):
                    raise _refusal(f"{holder}.{name}", replacement)


@cache
def _meanings(fields: tuple[str, ...]) -> Mapping[str, str]:
    """Return the field that each lower-case name means."""
    own = {name: name for name in fields}
    return {**REFUSED, **own} if "max_tokens" in fields else own


def _refusal(path: str, replacement: str) -> InvalidRequest:
    return InvalidRequest(
        f"'{path}' is not accepted: some engines treat it as '{replacement}', and the gateway does not. "
        f"Send '{replacement}'.",
        param=path,
    )
