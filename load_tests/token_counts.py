"""Compare the token counts of different tokenizers on the same text, for the error bound of estimates.

    PYTHONPATH=. python load_tests/token_counts.py --help

Every tokenizer counts each text. The ratio of the larger to the smaller count of two tokenizers is the error
of a baseline that uses the other model's count. The last column is the part of the pairs outside of the bound in
receipts (gateway/accounting/estimate.py). No network is used.
"""

from __future__ import annotations

import gettext
import itertools
import json
import random
from collections import defaultdict
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.request import Request, urlopen

import typer

from gateway.accounting.estimate import TextSize, count_text, token_error
from gateway.config.models import ENCODINGS
from gateway.local.weights import fetch
from gateway.runtime.llama_cpp import LlamaOptions, serve
from load_tests import markdown
from load_tests.machine import machine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    Count = Callable[[str], int]

_CHUNK_CHARS = (80, 400, 1600)
_LEAST_CHARS = 20
_MOST_PER_KIND = 400
ROOT = Path(__file__).parents[1]
_LANGUAGE = "language "
_SAME = frozenset({"o200k_harmony", "p50k_edit"})
_CATALOGUES = (Path("/usr/share/locale"), Path("/usr/share/vim"))


@dataclass(slots=True)
class Disagreement:
    """Ratios of the larger token count to the smaller one for one kind of text, and violations of the bound."""

    texts: int = 0
    ratios: list[float] = field(default_factory=list)
    outside: int = 0
    scripts: set[str] = field(default_factory=set)

    def add(self, text: str, counts: Sequence[int]) -> None:
        self.texts += 1
        extent = TextSize.of([text])
        self.scripts.add(extent.script)
        for estimate, true in itertools.permutations(counts, 2):
            self.outside += abs(true - estimate) > token_error(estimate, extent)
        self.ratios += [max(pair) / max(1, min(pair)) for pair in itertools.combinations(counts, 2)]

    def row(self, kind: str) -> list[str]:
        ordered = sorted(self.ratios)
        at = [ordered[min(len(ordered) - 1, int(len(ordered) * part))] for part in (0.5, 0.9, 0.99)]
        pairs = 2 * len(ordered)
        return [
            kind,
            "/".join(sorted(self.scripts)),
            f"{self.texts}",
            *(f"{ratio:.2f}" for ratio in (*at, ordered[-1])),
            f"{self.outside} of {pairs} ({self.outside / pairs:.3%})",
        ]


def tokenizers() -> dict[str, Count]:
    """Return the tokenizers that LiteLLM installs: OpenAI's encodings, and files of two other vendors."""
    spec = find_spec("litellm")
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent / "litellm_core_utils" / "tokenizers"
    # Two of the encodings share the vocabulary of another one, so a comparison with it has no information.
    names = [
        *(name for name in ENCODINGS if name not in _SAME),
        *(str(file) for file in sorted(folder.glob("*_tokenizer.json"))),
    ]
    return {Path(name).stem: partial(count_text, name) for name in names}


def llama(name: str) -> Count:
    """Return the tokenizer in a GGUF file."""
    server = serve(fetch(name), name, LlamaOptions(slot_tokens=512, parallel=1), host="127.0.0.1")

    def count(text: str) -> int:
        body = json.dumps({"content": text, "add_special": False}).encode()
        request = Request(f"{server.listening_address}/tokenize", body, {"Content-Type": "application/json"})
        with urlopen(request, timeout=60) as reply:
            return len(json.load(reply)["tokens"])

    # The model is freed with its last reference, which `count` holds.
    return count


def samples() -> Iterator[tuple[str, str]]:
    """Yield (kind, text) of the project's pages and code, and of the message catalogs of this machine."""
    for file in sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]):
        yield "English, Markdown", file.read_text("utf-8")
    for file in sorted(ROOT.glob("gateway/**/*.py")):
        yield "Python", file.read_text("utf-8")
    for file in sorted(ROOT.glob("docs/schema/*.json")):
        yield "JSON", file.read_text("utf-8")
    for folder in _CATALOGUES:
        for file in sorted(folder.rglob("*.mo")):
            language = file.parts[-3].partition(".")[0].partition("_")[0]
            if text := _catalogue(file):
                yield f"{_LANGUAGE}{language}", text


def _named(places: Sequence[Path]) -> Iterator[tuple[str, str]]:
    for place in places:
        if place.suffix != ".jsonl":
            yield f"named, *{place.suffix}", place.read_text("utf-8", "ignore")
            continue
        for line in place.read_text("utf-8").splitlines():
            texts = [value for value in json.loads(line).values() if isinstance(value, str)]
            yield place.stem, "\n".join(texts)


def _catalogue(file: Path) -> str:
    try:
        with file.open("rb") as raw:
            catalog: Any = gettext.GNUTranslations(raw)._catalog  # type: ignore[attr-defined]  # noqa: SLF001  there is no public API
    except (OSError, ValueError, IndexError):
        return ""  # not readable by Python's gettext
    return "\n".join(value for key, value in catalog.items() if key and isinstance(value, str) and value != key)


def chunks(text: str, chance: random.Random) -> Iterator[str]:
    """Yield pieces with typical lengths of answers."""
    at = 0
    while at < len(text):
        size = chance.choice(_CHUNK_CHARS)
        piece = text[at : at + size].strip()
        at += size
        if len(piece) >= _LEAST_CHARS:
            yield piece


def main(
    places: Annotated[list[Path] | None, typer.Argument(help="Additional texts, or JSON Lines of texts.")] = None,
    gguf: Annotated[
        list[str] | None, typer.Option(help="A model of gateway/local/weights.py, or a .gguf file.")
    ] = None,
    most: Annotated[int, typer.Option(help="Texts of each kind.")] = _MOST_PER_KIND,
    *,
    only: Annotated[bool, typer.Option("--only", help="Only the named texts.")] = False,
    each: Annotated[bool, typer.Option("--each", help="A line for each language of the catalogs.")] = False,
) -> None:
    """Count tokens, and print a table."""
    chance = random.Random(7)
    by_kind: dict[str, list[str]] = defaultdict(list)
    named = places or []
    for kind, text in itertools.chain(_named(named), () if only else samples()):
        by_kind[kind] += chunks(text, chance)
    counts = tokenizers()
    counts |= {name: llama(name) for name in gguf or []}
    print(f"{machine()}\n\n{len(counts)} tokenizers: {', '.join(counts)}\n")
    rows = []
    every: dict[str, Disagreement] = defaultdict(Disagreement)
    for kind, found in sorted(by_kind.items()):
        one = Disagreement()
        for text in chance.sample(found, min(most, len(found))):
            numbers = [count(text) for count in counts.values()]
            one.add(text, numbers)
            every[TextSize.of([text]).script].add(text, numbers)
        if one.texts and (each or not kind.startswith(_LANGUAGE)):
            rows.append(one.row(kind))
    rows += [one.row(f"**all {script}**") for script, one in sorted(every.items())]
    head = ("text", "script", "texts", "ratio p50", "p90", "p99", "most", "outside the bound")
    print(markdown.table(head, rows))


if __name__ == "__main__":
    typer.run(main)
