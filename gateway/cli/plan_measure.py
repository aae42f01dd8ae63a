"""`gkt-gateway plan measure`: measure the curve of a running engine."""

from __future__ import annotations

import asyncio
import random
import time
from datetime import UTC, datetime
from decimal import Decimal
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal
from urllib.parse import urlsplit

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from gateway.cli.admin_client import usd_of
from gateway.cli.interrupts import run_until_interrupted
from gateway.cli.lazy import CONFIG, config_option
from gateway.cli.tables import in_json
from gateway.cli.timed_stream import time_stream
from gateway.config.models import ModelSettings
from gateway.config.settings import check_settings
from gateway.errors import ConfigError, EngineError, StartupError
from gateway.evaluation.pair import built
from gateway.planning.curve import (
    Curve,
    CurveOrigin,
    CurvePrice,
    StreamTiming,
    context_of,
    gains,
    improving_steps,
    median_step,
    prefill_of,
    step_of,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.engines.base import Engine
    from gateway.planning.curve import DecodeStep
    from gateway.protocol.body import Json

MAX_BATCHES = 16
MAX_BATCH_SIZE = 1024
_READS = 3
_SAMPLES = 3  # measurements of a batch size before it is left out, since one may be disturbed


def measure(
    engine: Annotated[
        str,
        typer.Argument(
            help="URL of an engine on this machine, or the name of a model in the configuration.",
            metavar="http://127.0.0.1:8000/v1|NAME",
        ),
    ],
    out: Annotated[Path, typer.Option(help="File to write.", metavar="FILE")] = Path("curve.json"),
    model: Annotated[
        str, typer.Option(help="With a URL: name of the model at the engine.", metavar="NAME")
    ] = "default",
    protocol: Annotated[Literal["openai", "tgi"], typer.Option(help="With a URL: API of the engine.")] = "openai",
    config: Annotated[Path, config_option(help="With a name: the configuration file.")] = CONFIG,
    batches: Annotated[str, typer.Option(help="Batch sizes to measure.", metavar="1,2,4,...")] = "1,2,4,8,16,32",
    prompt: Annotated[int, typer.Option(help="Approximate words of a prompt.", min=16, max=100_000)] = 400,
    tokens: Annotated[int, typer.Option(help="Tokens of each answer.", min=16, max=4096)] = 96,
    seconds: Annotated[
        float, typer.Option(help="Time limit in seconds. Completed batches are kept.", min=5, max=7200)
    ] = 600,
    gpu: Annotated[str | None, typer.Option(help="Name of the GPU, for the file.", metavar="NAME")] = None,
    gpus_per_replica: Annotated[int, typer.Option(help="GPUs of one replica.", min=1, max=100_000)] = 1,
    usd_per_hour: Annotated[str | None, typer.Option(help="USD per hour of one GPU.", metavar="USD")] = None,
) -> None:
    """Measure an engine's curve: step time by batch size, and prefill speed.

    It requests streamed answers: first one at a time with prompts of three lengths, then in the batch sizes of
    --batches. All prompts differ, so that no cache helps. Nothing else should use the engine meanwhile. An engine on
    another machine must be a model of the configuration.
    """
    sizes = _sizes(batches)
    settings = _on_this_machine(engine, model, protocol) if "://" in engine else _configured(engine, config)
    price = usd_of(usd_per_hour, "--usd-per-hour")
    console = Console(stderr=True, soft_wrap=True)
    measurement = _Measurement(settings, sizes, prompt, tokens, seconds, console)
    try:
        run_until_interrupted(measurement.run(), "measure")
    except EngineError as error:
        raise StartupError(f"{engine} was not measured: {error.message}") from error
    curve = measurement.curve(gpu, gpus_per_replica, price)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(in_json(curve.model_dump(by_alias=True, exclude_defaults=True)) + "\n", encoding="utf-8")
    console.print(
        f"{out}: steps of {len(curve.decode)} batches, up to {curve.measured_batch} answers together.", highlight=False
    )
    for doubt in measurement.warnings:
        console.print(f"warning: {doubt}", style="yellow", highlight=False)


def _sizes(text: str) -> list[int]:
    try:
        sizes = sorted({int(part) for part in text.split(",")})
    except ValueError:
        sizes = []
    if not sizes or not 1 <= len(sizes) <= MAX_BATCHES or sizes[0] < 1 or sizes[-1] > MAX_BATCH_SIZE:
        raise typer.BadParameter(
            f"must be 1 to {MAX_BATCHES} numbers between 1 and {MAX_BATCH_SIZE}, like 1,4,16", param_hint="--batches"
        )
    return sizes


def _on_this_machine(url: str, model: str, protocol: str) -> ModelSettings:
    host = urlsplit(url).hostname or ""
    if not _is_loopback(host):
        raise StartupError(
            f"{host or url} is not this machine: add the engine to config.yaml, and pass its name instead of its URL."
        )
    # The name appears in messages about the engine.
    name = urlsplit(url).netloc.rpartition("@")[2].replace("[", "").replace("]", "")
    console: Json = {"name": name, "model": model, "protocol": protocol, "api_base": url, "price": _FREE}
    try:
        return ModelSettings.model_validate(console)
    except ValidationError as error:
        raise StartupError(f"{url}: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from None


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _configured(name: str, config: Path) -> ModelSettings:
    settings, _, issues = check_settings(config)
    if settings is None:
        raise ConfigError(issues)
    model_settings = settings.by_name.get(name)
    if model_settings is None:
        raise StartupError(f"{name}: {config} has no such model. It has: {', '.join(settings.by_name)}.")
    return model_settings


_FREE: Json = {"input_per_1m": Decimal(0), "output_per_1m": Decimal(0)}


class _Measurement:
    def __init__(
        self, model: ModelSettings, sizes: Sequence[int], words: int, tokens: int, seconds: float, console: Console
    ) -> None:
        self._model = model
        self._sizes = sizes
        self._words = words
        self._tokens = tokens
        self._ends_s = time.monotonic() + seconds
        self._console = console
        self._random = random.Random()  # noqa: S311  another text each time, no secret
        self._reads: list[list[StreamTiming]] = []
        self._timings: list[StreamTiming] = []
        self._samples: dict[int, list[DecodeStep | None]] = {}  # by batch size; None: too few steps
        self.warnings: list[str] = []

    async def run(self) -> None:
        """Measure all batch sizes. Raises EngineError, and StartupError if the time limit was too short."""
        try:
            async with built(self._model) as engine:
                await self._measure(engine)
        except TimeoutError:
            raise StartupError(
                "The engine is too slow for the time limit: increase --seconds or shorten --prompt."
            ) from None

    async def _measure(self, engine: Engine) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self._console, transient=True) as progress:
            work = progress.add_task("", total=1 + 3 * _READS + sum(self._sizes))
            progress.update(work, description="first call")
            await self._ask(engine, 8, 4)  # warm-up
            progress.advance(work)
            for words in (self._words // 4, self._words, self._words * 2):
                progress.update(work, description=f"reading {words} words")
                self._reads.append([])
                for _ in range(_READS):
                    self._reads[-1].append(await self._ask(engine, words, 2))
                    progress.advance(work)
            for size in self._sizes:
                progress.update(work, description=f"{size} at once")
                if not await self._decode(engine, size):
                    return
                progress.advance(work, size)
                progress.update(work, description=f"{size} at once, again")
                if not await self._repeat(engine, size):
                    return

    async def _repeat(self, engine: Engine, size: int) -> bool:
        """Measure a batch size that would be left out again, and the one before it. Return False at the time limit."""
        smaller = [step for other in self._samples if other < size and (step := self._step(other)) is not None]
        while len(self._samples[size]) < _SAMPLES:
            step = self._step(size)
            before = self._step(smaller[-1].batch) if smaller else None
            if step is not None and (before is None or gains(step, before)):
                break
            for repeated in (size,) if before is None else (before.batch, size):
                if not await self._decode(engine, repeated):
                    return False
        return True

    def _step(self, size: int) -> DecodeStep | None:
        return median_step(self._samples[size])

    async def _decode(self, engine: Engine, size: int) -> bool:
        """Measure one batch size once. Return False if the time limit was reached."""
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._ask(engine, self._words, self._tokens)) for _ in range(size)]
        except ExceptionGroup as failed:
            first = failed.exceptions[0]
            if not isinstance(first, TimeoutError):
                raise first from None
            repeated = size in self._samples
            what = f"{size} answers at once were measured again" if repeated else f"{size} answers at once"
            self.warnings.append(f"the time was over before {what}: the curve ends before larger batches")
            return False
        timings = [one.result() for one in tasks]
        step = step_of(timings)
        self._samples.setdefault(size, []).append(step)
        if step is not None:
            self._timings += timings
        return True

    async def _ask(self, engine: Engine, words: int, tokens: int) -> StreamTiming:
        """Send one streamed request and return its times. Raises EngineError, or TimeoutError at the time limit."""
        async with asyncio.timeout(max(0.0, self._ends_s - time.monotonic())):
            timed = await time_stream(engine, self._random, words, tokens)
        usage = timed.usage
        if not timed.events_s or not usage:
            raise StartupError("The engine returned no text or no token counts in a stream: it cannot be measured.")
        counts = int(usage["prompt_tokens"]), max(1, int(usage["completion_tokens"]))
        return StreamTiming(timed.started_s, timed.events_s, *counts)

    def curve(self, gpu: str | None, gpus_per_replica: int, usd_per_hour: Decimal | None) -> Curve:
        """Return the curve. Raises StartupError if there are too few measurements."""
        measured = []
        for size in self._samples:
            if (step := self._step(size)) is not None:
                measured.append(step)
                continue
            self.warnings.append(
                f"{size} at once: answers ended, or began, too far apart to be decoded together; give more --tokens"
            )
        steps = improving_steps(measured)
        if len(steps) < len(measured):
            self.warnings.append(f"from {steps[-1].batch} answers on it gained nothing: larger batches were left out")
        if not steps:
            raise StartupError("No batch was decoded together long enough: increase --tokens or reduce --batches.")
        prefill = prefill_of(self._reads, steps[0].step_s)
        if prefill is None:
            raise StartupError("Longer prompts did not take longer: increase --prompt.")
        return Curve(
            model=self._model.model if self._model.model != "default" else self._model.name,
            gpu=gpu,
            engine=self._model.protocol,
            gpus_per_replica=gpus_per_replica,
            decode=steps,
            prefill=prefill,
            price=None if usd_per_hour is None else CurvePrice(gpu_usd_per_hour=usd_per_hour),
            origin=CurveOrigin(
                kind="measured",
                source="gkt-gateway plan measure",
                on=datetime.now(UTC).date().isoformat(),
                context_tokens=context_of(self._timings),
            ),
        )
