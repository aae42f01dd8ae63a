"""What subcommands of `gkt-gateway eval` share: options for questions and engines, the pair, the extra they need."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from gateway.cli.demo import STUDENT, TEACHER
from gateway.errors import ConfigError, StartupError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gateway.evaluation.pair import Pair

DATA, ENGINES = "The questions", "The engines"

Data: TypeAlias = Annotated[
    str, typer.Option(help="generated, generated-choices, gsm8k, csqa, or a file of JSON lines.", rich_help_panel=DATA)
]
SkipBad: TypeAlias = Annotated[
    bool, typer.Option("--skip-bad", help="Pass over lines that cannot be used.", rich_help_panel=DATA)
]
Scorer: TypeAlias = Annotated[
    str | None,
    typer.Option(
        help="How answers are scored, whatever the data says; package.module:function is your own.",
        rich_help_panel=DATA,
    ),
]
Judge: TypeAlias = Annotated[
    str | None, typer.Option(help="A model of --config that scores what no rule can.", rich_help_panel=DATA)
]
Config: TypeAlias = Annotated[
    Path | None, typer.Option("--config", "-c", help="Take models of this file.", rich_help_panel=ENGINES)
]
Teacher: TypeAlias = Annotated[
    str | None,
    typer.Option(
        help=f"A model of --config; else of the catalogue, or a .gguf file. Default: {TEACHER}.",
        rich_help_panel=ENGINES,
    ),
]
Student: TypeAlias = Annotated[str | None, typer.Option(help=f"Likewise. Default: {STUDENT}.", rich_help_panel=ENGINES)]
Concurrency: TypeAlias = Annotated[
    int, typer.Option(min=1, max=1024, help="Questions under way at once.", rich_help_panel=ENGINES)
]
SlotTokens: TypeAlias = Annotated[
    int,
    typer.Option(
        min=256, help="Context of each, on this machine: exemplars, question, answer.", rich_help_panel=ENGINES
    ),
]


def pair_of(config: Path | None, teacher: str | None, student: str | None, concurrency: int, slot_tokens: int) -> Pair:
    """The engines that the options name. Raises StartupErrors."""
    from gateway.evaluation.pair import ConfiguredPair, LocalPair

    if config is None:
        return LocalPair(teacher or TEACHER, student or STUDENT, concurrency, slot_tokens)
    from gateway.config.settings import check_settings

    if teacher is None or student is None:
        raise typer.BadParameter("needs --teacher and --student: names of its models", param_hint="--config")
    settings, _, mistakes = check_settings(config)
    if settings is None:
        raise ConfigError(mistakes)
    return ConfiguredPair(settings, teacher, student)


@contextmanager
def of_the_extra() -> Iterator[None]:
    """For imports of what needs the extra `eval`. Raises StartupError where that is not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise StartupError(
            f"This needs {error.name}, which is not installed: pip install 'gkt-gateway[eval]'."
        ) from error
