"""`gkt-gateway plan measure`: the curve of an engine that runs, from streams of it."""

from __future__ import annotations

import asyncio
import random
import time
from contextlib import aclosing
from datetime import UTC, datetime
from decimal import Decimal
from enum import StrEnum
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import msgspec
import typer
import uvloop
from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from gateway.cli.admin_commands import usd_of
from gateway.cli.interrupts import INTERRUPTED, until_interrupted
from gateway.config.models import ModelSettings
from gateway.config.settings import check_settings
from gateway.engines.build import build
from gateway.errors import ConfigError, EngineError, StartupError
from gateway.planning.curve import Curve, CurveOrigin, CurvePrice
from gateway.planning.measured import StreamTiming, context_of, improving_steps, prefill_of, step_of
from gateway.policy.book import PolicySet
from gateway.policy.policies import Policies
from gateway.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.engines.base import Engine
    from gateway.planning.curve import DecodeStep
    from gateway.protocol.body import Json

MOST_BATCHES = 16
MOST_AT_ONCE = 1024
_READS = 3
_ENCODER = msgspec.json.Encoder(decimal_format="number")  # a curve's numbers stand without quotes
_WORDS = ("river", "stone", "cloud", "paper", "window", "garden", "letter", "market", "winter", "bridge", "music")
_COUNT = "Write the numbers from one to ten thousand in words, one after the other, and nothing else."


class EngineProtocol(StrEnum):
    """Protocols of engines on this machine."""

    OPENAI = "openai"
    TGI = "tgi"


def measure(
    engine: Annotated[
        str,
        typer.Argument(
            help="Its address on this machine, or the name of a model in the configuration.",
            metavar="http://127.0.0.1:8000/v1|NAME",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Where to write the curve.", metavar="FILE")] = Path("curve.json"),
    model: Annotated[
        str, typer.Option(help="With an address: what the engine calls its model.", metavar="NAME")
    ] = "default",
    protocol: Annotated[EngineProtocol, typer.Option(help="With an address: what it speaks.")] = EngineProtocol.OPENAI,
    config: Annotated[Path, typer.Option("--config", "-c", help="With a name: the configuration.")] = Path(
        "config.yaml"
    ),
    batches: Annotated[
        str, typer.Option(help="How many answers to ask for at once, in turn.", metavar="1,2,4,...")
    ] = "1,2,4,8,16,32",
    prompt: Annotated[int, typer.Option(help="Words of a prompt, about.", min=16, max=100_000)] = 400,
    tokens: Annotated[int, typer.Option(help="Tokens of each answer.", min=16, max=4096)] = 96,
    seconds: Annotated[float, typer.Option(help="Stop after so long, with the batches done.", min=5, max=7200)] = 600,
    gpu: Annotated[str | None, typer.Option(help="What it runs on, for the file.", metavar="NAME")] = None,
    gpus_per_replica: Annotated[int, typer.Option(help="How many of these.", min=1, max=100_000)] = 1,
    usd_per_hour: Annotated[str | None, typer.Option(help="USD for an hour of one of them.", metavar="USD")] = None,
) -> None:
    """Measure how long the steps of an engine take, by how many answers it decodes together, and how fast it reads.

    It asks for answers that stream: first one at a time after prompts of three lengths, then as many at once as
    --batches says. Every prompt is another one, so that no cache helps. Nothing else should use the engine meanwhile.
    An engine elsewhere must be a model of the configuration: calls go only where a file sends them.
    """
    sizes = _sizes(batches)
    settings = _on_this_machine(engine, model, protocol) if "://" in engine else _configured(engine, config)
    price = usd_of(usd_per_hour, "--usd-per-hour")
    told = Console(stderr=True, soft_wrap=True)
    sitting = _Sitting(settings, sizes, prompt, tokens, seconds, told)
    try:
        whole = uvloop.run(until_interrupted(sitting.hold(), "measure"))
    except EngineError as error:
        raise StartupError(f"{engine} was not measured: {error.message}") from error
    if not whole:
        raise typer.Exit(INTERRUPTED)
    curve = sitting.curve(gpu, gpus_per_replica, price)
    out.parent.mkdir(parents=True, exist_ok=True)
    told_plainly = curve.model_dump(by_alias=True, exclude_defaults=True)
    out.write_bytes(msgspec.json.format(_ENCODER.encode(told_plainly), indent=2) + b"\n")
    told.print(
        f"{out}: steps of {len(curve.decode)} batches, up to {curve.measured_batch} answers together.", highlight=False
    )
    for doubt in sitting.doubts:
        told.print(f"warning: {doubt}", style="yellow", highlight=False)


def _sizes(text: str) -> list[int]:
    try:
        sizes = sorted({int(part) for part in text.split(",")})
    except ValueError:
        sizes = []
    if not sizes or not 1 <= len(sizes) <= MOST_BATCHES or sizes[0] < 1 or sizes[-1] > MOST_AT_ONCE:
        raise typer.BadParameter(
            f"must be 1 to {MOST_BATCHES} numbers between 1 and {MOST_AT_ONCE}, like 1,4,16", param_hint="--batches"
        )
    return sizes


def _on_this_machine(url: str, model: str, protocol: EngineProtocol) -> ModelSettings:
    host = urlsplit(url).hostname or ""
    if not _is_loopback(host):
        raise StartupError(
            f"{host or url} is not this machine: put the engine into config.yaml, and give its name instead of its "
            "address."
        )
    # It stands in what is said of the engine.
    name = urlsplit(url).netloc.rpartition("@")[2].replace("[", "").replace("]", "")
    told: Json = {"name": name, "model": model, "protocol": protocol.value, "api_base": url, "price": _FREE}
    try:
        return ModelSettings.model_validate(told)
    except ValidationError as error:
        raise StartupError(f"{url}: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from None


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _configured(name: str, config: Path) -> ModelSettings:
    settings, _, mistakes = check_settings(config)
    if settings is None:
        raise ConfigError(mistakes)
    found = settings.by_name.get(name)
    if found is None:
        raise StartupError(f"{name}: {config} has no such model. It has: {', '.join(settings.by_name)}.")
    return found


_FREE: Json = {"input_per_1m": Decimal(0), "output_per_1m": Decimal(0)}


class _Sitting:
    """One measurement: asks, and keeps what was heard."""

    def __init__(
        self, model: ModelSettings, sizes: Sequence[int], words: int, tokens: int, seconds: float, told: Console
    ) -> None:
        self._model = model
        self._sizes = sizes
        self._words = words
        self._tokens = tokens
        self._ends_s = time.monotonic() + seconds
        self._told = told
        self._random = random.Random()  # noqa: S311  another text each time, no secret
        self._reads: list[list[StreamTiming]] = []
        self._answers: list[StreamTiming] = []
        self._steps: list[DecodeStep] = []
        self.doubts: list[str] = []

    async def hold(self) -> None:
        """Ask. Raises EngineErrors, and StartupError where the time was too short for anything."""
        engine = (await build([self._model], Policies(PolicySet.of([]), None), Metrics(None, 1)))[self._model.name]
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        try:
            with Progress(*columns, console=self._told, transient=True) as progress:
                work = progress.add_task("", total=1 + 3 * _READS + sum(self._sizes))
                progress.update(work, description="first call")
                await self._ask(engine, 8, 4)  # connects, and wakes what sleeps
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
        except TimeoutError:
            raise StartupError(
                "Too slow to be measured in that time: give it more --seconds, or a shorter --prompt."
            ) from None
        finally:
            await engine.close()

    async def _decode(self, engine: Engine, size: int) -> bool:
        """Whether there was time for it."""
        try:
            async with asyncio.TaskGroup() as group:
                asked = [group.create_task(self._ask(engine, self._words, self._tokens)) for _ in range(size)]
        except ExceptionGroup as failed:
            first = failed.exceptions[0]
            if not isinstance(first, TimeoutError):
                raise first from None
            self.doubts.append(f"the time was over before {size} answers at once: the curve ends before")
            return False
        answers = [one.result() for one in asked]
        step = step_of(answers)
        if step is None:
            self.doubts.append(
                f"{size} at once: answers ended, or began, too far apart to be decoded together; give more --tokens"
            )
        else:
            self._steps.append(step)
            self._answers += answers
        return True

    async def _ask(self, engine: Engine, words: int, tokens: int) -> StreamTiming:
        """One streamed answer. Raises EngineErrors, TimeoutError when the sitting's time is over."""
        text = " ".join(self._random.choice(_WORDS) for _ in range(words))
        body: Json = {
            "model": self._model.model,
            "messages": [{"role": "user", "content": f"{self._random.getrandbits(64):x} {text}\n\n{_COUNT}"}],
            "max_tokens": tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        events: list[float] = []
        usage: Json = {}
        started_s = time.perf_counter()
        async with asyncio.timeout(max(0.0, self._ends_s - time.monotonic())), aclosing(engine.stream(body)) as groups:
            async for chunks in groups:
                now = time.perf_counter()
                for chunk in chunks:
                    usage = chunk.get("usage") or usage
                    events += [now for choice in chunk.get("choices", ()) if choice.get("delta", {}).get("content")]
        if not events or not usage:
            raise StartupError("The engine wrote nothing, or does not count tokens in streams: it cannot be measured.")
        return StreamTiming(
            started_s, tuple(events), int(usage["prompt_tokens"]), max(1, int(usage["completion_tokens"]))
        )

    def curve(self, gpu: str | None, gpus_per_replica: int, usd_per_hour: Decimal | None) -> Curve:
        """What was found. Raises StartupError where it is too little for a curve."""
        steps = improving_steps(self._steps)
        if len(steps) < len(self._steps):
            self.doubts.append(f"from {steps[-1].batch} answers on it gained nothing: larger batches were left out")
        if not steps:
            raise StartupError("No batch was decoded together for long enough: give more --tokens, or fewer --batches.")
        prefill = prefill_of(self._reads, steps[0].step_s)
        if prefill is None:
            raise StartupError("Longer prompts were not read for longer: give a longer --prompt.")
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
                context_tokens=context_of(self._answers),
            ),
        )
