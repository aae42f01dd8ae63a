"""Compare guided answers with the answers of a single model.

    python -m load_tests.seam_equality --help

Student and teacher are the same model by default (greedy, one slot, no prompt cache). A guided answer should then
equal the teacher's own answer for every m. The table shows the differences by cause. An engine rounds differently when
it processes many tokens at once, which alone changes some answers. `--read-at-once 1` avoids this, so only differences
at the seam remain. With another student, the table counts words at the seam that are not in the vocabulary.

The prompts are in seam_prompts.json. Needs the embedded models, and no network if their weights are cached. The run
ends by itself.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from contextlib import AsyncExitStack, aclosing
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, get_args

import orjson
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from gateway.guidance.seam import SeamJoin
from gateway.guidance.trim import trim
from gateway.local import child, weights
from gateway.policy.guidance_rule import Boundary
from gateway.runtime import llama_cpp as llama
from load_tests.seam_cases import (
    WHYS,
    SeamCase,
    differs,
    is_doubtful,
    is_within_a_word,
    reason,
    tokens_within,
    words_of,
)
from load_tests.seam_engine import SeamEngine, Written

PROMPTS = Path(__file__).with_name("seam_prompts.json")
BOUNDARIES: tuple[Boundary, ...] = get_args(Boundary)
LENGTHS = (5, 10, 20, 40)
QUICK_LENGTHS, QUICK_PROMPTS, QUICK_TOKENS = (5, 20), 14, 40
# A difference of a few tokens at the seam must not look like the end of the answer.
SLACK_TOKENS = 8
# Only the words at the seam are read from another student.
SEAM_TOKENS = 8
SLOT_TOKENS = 2048


class Experiment:
    """Send each question once, and continue every kept beginning of the answer."""

    def __init__(self, teacher: SeamEngine, student: SeamEngine, *, same: bool, tokens: int) -> None:
        self._teacher = teacher
        self._student = student
        self._same = same
        self._tokens = tokens
        self.texts: list[str] = []
        self.cases: list[SeamCase] = []
        self.whole = 0
        self.empty: Counter[str] = Counter()

    async def ask(self, kind: str, question: str, lengths: tuple[int, ...]) -> None:
        """Run a question with every length and boundary. Equal beginnings share one continuation."""
        written = await self._teacher.write(question, self._tokens)
        self.texts.append(written.text)
        answers: dict[str, str] = {}
        for m in lengths:
            text, cut = written.upto(m)
            if not cut:
                self.whole += len(BOUNDARIES)
                continue
            for boundary in BOUNDARIES:
                trimmed = trim(text, cut=True, boundary=boundary)
                if not trimmed.text:
                    self.empty[boundary] += 1
                    continue
                if trimmed.text not in answers:
                    answers[trimmed.text] = await self._guided(question, trimmed.text, written)
                case = await self._case(kind, question, m, boundary, trimmed.text, answers[trimmed.text], written)
                self.cases.append(case)

    async def _guided(self, question: str, guidance: str, written: Written) -> str:
        """Return the guided answer, up to its first difference from the teacher's."""
        expected = written.text.lstrip()
        left = self._tokens - tokens_within(written, len(guidance)) + SLACK_TOKENS if self._same else SEAM_TOKENS
        seam = SeamJoin(guidance, echo=None if self._same else True)
        answer = seam.initial_text
        async with aclosing(self._student.continue_answer(question, guidance, left)) as pieces:
            async for piece in pieces:
                answer += seam.feed(piece)
                if self._same and differs(expected, answer, complete=False):
                    break
        return answer + seam.finish()

    async def _case(
        self, kind: str, question: str, m: int, boundary: Boundary, kept: str, got: str, written: Written
    ) -> SeamCase:
        expected = written.text.lstrip()
        why = None
        if self._same and (differs(expected, got, complete=written.ended) or len(got) < len(expected)):
            chat = [{"role": "user", "content": question}]
            sent = await self._student.rendered([*chat, {"role": "assistant", "content": kept}])
            why = reason(
                written,
                kept,
                prompt=await self._student.rendered(chat),
                sent=sent,
                sent_ids=await self._student.tokens(sent),
            )
        lead = len(written.text) - len(expected)
        return SeamCase(kind, question, m, boundary, kept, tokens_within(written, lead + len(kept)), expected, got, why)


async def run(urls: list[str], prompts: list[tuple[str, str]], lengths: tuple[int, ...], tokens: int) -> Experiment:
    """Run the experiment with a progress bar. With one URL, the student is the teacher."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left:"),
        TimeRemainingColumn(),
    )
    async with AsyncExitStack() as exits:
        engines = [await exits.enter_async_context(SeamEngine(url)) for url in urls]
        experiment = Experiment(engines[0], engines[-1], same=len(engines) == 1, tokens=tokens)
        with Progress(*columns, console=Console(stderr=True)) as progress:
            for kind, question in progress.track(prompts, description="prompts"):
                await experiment.ask(kind, question, lengths)
    return experiment


def chosen(limit: int) -> list[tuple[str, str]]:
    """Return prompts, alternating between kinds, so that a small number of them is varied too."""
    kinds: dict[str, list[str]] = orjson.loads(PROMPTS.read_bytes())
    longest = max(map(len, kinds.values()))
    turns = [(kind, texts[turn]) for turn in range(longest) for kind, texts in kinds.items() if turn < len(texts)]
    return turns[:limit]


def show_equality(experiment: Experiment, lengths: tuple[int, ...], console: Console) -> None:
    """Print the number of guided answers that differ from the teacher's, by cause."""
    table = Table(
        "boundary", "m", "answers", "differ", *WHYS, "kept of m", title="guided answers that differ from the teacher's"
    )
    for boundary in BOUNDARIES:
        for m in (*lengths, None):
            cases = [one for one in experiment.cases if one.boundary == boundary and m in (None, one.m)]
            whys = Counter(one.why for one in cases if one.why is not None)
            tokens = sum(one.m for one in cases)
            table.add_row(
                boundary if m is None else "",
                "all" if m is None else str(m),
                str(len(cases)),
                str(whys.total()),
                *(str(whys[why]) for why in WHYS),
                f"{sum(one.kept_tokens for one in cases) / tokens:.2f}" if tokens else "",
                end_section=m is None,
            )
    console.print(table)
    for why, meaning in WHYS.items():
        console.print(f"{why}: {meaning}", highlight=False)


def show_words(experiment: Experiment, console: Console) -> None:
    """Print the number of unknown words at the seam, and these seams."""
    vocabulary = words_of([*experiment.texts, *(case.question + " " for case in experiment.cases)])
    table = Table("boundary", "seams", "within a word", "doubtful word", title="words at the seam")
    for boundary in BOUNDARIES:
        cases = [one for one in experiment.cases if one.boundary == boundary]
        doubtful = [one for one in cases if is_doubtful(one, vocabulary)]
        inside = sum(is_within_a_word(one) for one in cases)
        table.add_row(boundary, str(len(cases)), str(inside), str(len(doubtful)))
        for one in doubtful:
            seam = one.kept[-30:] + "|" + one.got[len(one.kept) :][:30]
            console.print(f"{boundary}, m={one.m}: {seam!r}", highlight=False, markup=False)
    console.print(table)


def served(model: str, read_at_once: int) -> Any:
    """Start a llama.cpp server in this process, with one slot and one thread."""
    options = llama.LlamaOptions(parallel=1, slot_tokens=SLOT_TOKENS, batch_tokens=read_at_once)
    return llama.serve(weights.fetch(model), model, options, host="127.0.0.1")


def main(
    teacher: Annotated[str, typer.Option(help="A model of the catalogue.")] = "smollm2-135m-instruct",
    student: Annotated[str, typer.Option(help="Another student; default: the teacher itself.")] = "",
    prompts: Annotated[int, typer.Option(min=1, help="Number of prompts, alternating between kinds.")] = 1000,
    tokens: Annotated[int, typer.Option(min=1, max=400, help="Maximum length of an answer, in tokens.")] = 80,
    read_at_once: Annotated[int, typer.Option(min=1, max=2048, help="Prompt tokens an engine reads in one step.")] = 1,
    quick: Annotated[bool, typer.Option("--quick", help="14 prompts, m of 5 and 20, answers of 40 tokens.")] = False,
    out: Annotated[Path, typer.Option(help="File for all cases, as JSON.")] = Path("seam_equality.json"),
) -> None:
    """Compare guided answers with the teacher's own, for each boundary at which guidance may be cut."""
    lengths = QUICK_LENGTHS if quick else LENGTHS
    selected = chosen(min(prompts, QUICK_PROMPTS) if quick else prompts)
    models = [teacher] if student in ("", teacher) else [teacher, student]
    servers = [served(model, read_at_once) for model in models]
    urls = [server.listening_address for server in servers]
    began = time.monotonic()
    experiment = asyncio.run(run(urls, selected, lengths, min(tokens, QUICK_TOKENS) if quick else tokens))
    took_s = time.monotonic() - began
    facts: dict[str, Any] = {"models": models, "read_at_once": read_at_once, "prompts": len(selected), "took_s": took_s}
    facts["cases"] = [asdict(case) for case in experiment.cases]
    out.write_bytes(orjson.dumps(facts, option=orjson.OPT_INDENT_2))
    console = Console(width=120)
    if len(models) == 1:
        show_equality(experiment, lengths, console)
    else:
        show_words(experiment, console)
    console.print(
        f"{' -> '.join(models)}, {len(selected)} prompts in {took_s:.0f} s; {experiment.whole} guidance texts were "
        f"complete answers; {experiment.empty.total()} were empty after trimming. All cases: {out}",
        highlight=False,
    )
    child.exit_now(servers)


if __name__ == "__main__":
    typer.run(main)
