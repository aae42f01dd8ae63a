"""The largest answer of each engine in tokens. It bounds requests that set no limit. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

DEFAULT_MAX_OUTPUT_TOKENS = 131_072
"""The bound for an engine with an unknown maximum. Only a few models of 2026 write longer answers."""


class MaxOutput(NamedTuple):
    """The largest number of tokens in one answer.

    Attributes:
        known: False where `tokens` is the default, which the engine may exceed.
    """

    tokens: int
    known: bool = True


MaxOutputOf: TypeAlias = "Callable[[str], MaxOutput]"
"""The maximum of an engine, by its name."""


def unknown_max_output(_: str) -> MaxOutput:
    """Return the default for every engine."""
    return MaxOutput(DEFAULT_MAX_OUTPUT_TOKENS, known=False)


class EngineMaxima:
    """Look up the maximum of an engine: config.yaml, then the engine's own report, then the list, then the default.

    Args:
        configured: `max_output_tokens` of config.yaml by engine; None where it is not set.
        listed: the maximum of the model in LiteLLM's table by engine; None where the table has none.
        reported: returns the context size that an engine reported, in tokens; None where it reported none.
    """

    def __init__(
        self,
        configured: Mapping[str, int | None],
        listed: Mapping[str, int | None],
        reported: Callable[[str], int | None] = lambda _: None,
    ) -> None:
        self._configured = configured
        self._listed = listed
        self._reported = reported

    def __call__(self, engine: str) -> MaxOutput:
        """Return the maximum of `engine`."""
        tokens = self._configured.get(engine) or self._reported(engine) or self._listed.get(engine)
        return MaxOutput(tokens) if tokens else unknown_max_output(engine)
