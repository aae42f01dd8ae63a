"""Shared options of `gkt-gateway eval` subcommands: questions, engines, and the extra `eval`."""

from __future__ import annotations

import re
from contextlib import contextmanager
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from gateway.cli.demo import STUDENT, TEACHER
from gateway.errors import ConfigError, StartupError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gateway.evaluation.pair import Pair

NUMBER = r"[0-9]{1,9}(?:\.[0-9]{1,12})?"
"""A decimal number of 0 or more."""
data_option = partial(typer.Option, rich_help_panel="Questions")
engine_option = partial(typer.Option, rich_help_panel="Engines")

Data: TypeAlias = Annotated[
    str,
    data_option(
        help="Questions: gsm8k (word problems) or csqa (five choices), of which the package has 200 each, or a JSON "
        "Lines file."
    ),
]
SkipBad: TypeAlias = Annotated[bool, data_option("--skip-bad", help="Skip invalid lines.")]
Scorer: TypeAlias = Annotated[
    str | None, data_option(help="Scorer of answers instead of the data's; package.module:function for your own.")
]
Judge: TypeAlias = Annotated[
    str | None, data_option(help="Model of --config that scores answers without a rule, or compares them.")
]
Config: TypeAlias = Annotated[Path | None, engine_option("--config", "-c", help="Use models of this configuration.")]
_MODEL = "Model of --config; else a catalogue name or a .gguf file."
Teacher: TypeAlias = Annotated[str | None, engine_option(help=f"{_MODEL} Default: {TEACHER}.")]
Student: TypeAlias = Annotated[str | None, engine_option(help=f"{_MODEL} Default: {STUDENT}.")]
Concurrency: TypeAlias = Annotated[int, engine_option(min=1, max=1024, help="Concurrent questions.")]
SlotTokens: TypeAlias = Annotated[int, engine_option(min=256, help="Context tokens per question of local models.")]


def share(text: str, option: str) -> Decimal:
    """Return a share that is written as 95% or 0.95. Raises BadParameter."""
    match = re.fullmatch(rf"({NUMBER}) ?(%?)", text)
    found = None if match is None else Decimal(match[1]) / (100 if match[2] else 1)
    if found is None or not 0 < found <= 1:
        raise typer.BadParameter("must be more than 0 and at most 100%, like 95% or 0.95", param_hint=option)
    return found


def cache_hits(text: str) -> Decimal | None:
    """Return the part of `--cache-hits`; None for the measured one. Raises BadParameter."""
    if text.strip() == "measured":
        return None
    match = re.fullmatch(rf"({NUMBER}) ?(%?)", text)
    found = None if match is None else Decimal(match[1]) / (100 if match[2] else 1)
    if found is None or found > 1:
        raise typer.BadParameter(
            "must be 0% (no prompt cache) to 100%, like 95% or 0.95, or measured, for what the engines of the run "
            "reported",
            param_hint="--cache-hits",
        )
    return found


def confidence_level(text: str) -> float:
    """Return the confidence of a one-sided claim. Raises BadParameter."""
    level = float(share(text, "--confidence"))
    if not 0.5 < level < 1:
        raise typer.BadParameter("must be more than 50% and less than 100%", param_hint="--confidence")
    return level


def pair_of(config: Path | None, teacher: str | None, student: str | None, concurrency: int, slot_tokens: int) -> Pair:
    """Return the engines that the options name. Raises StartupError, ConfigError and typer.BadParameter."""
    from gateway.evaluation.pair import ConfiguredPair, LocalPair

    if config is None:
        return LocalPair(teacher or TEACHER, student or STUDENT, concurrency, slot_tokens)
    from gateway.config.settings import check_settings

    if teacher is None or student is None:
        raise typer.BadParameter("needs --teacher and --student: names of its models", param_hint="--config")
    settings, _, issues = check_settings(config)
    if settings is None:
        raise ConfigError(issues)
    return ConfiguredPair(settings, teacher, student)


@contextmanager
def of_the_extra() -> Iterator[None]:
    """Guard imports that need the extra `eval`. Raises StartupError if it is not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise StartupError(
            f"This needs {error.name}, which is not installed: pip install 'gkt-gateway[eval]'."
        ) from error
