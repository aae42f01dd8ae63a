"""Train the dictionary that compresses receipts (gateway/usage/packing.py), from synthetic receipts of all kinds.

    PYTHONPATH=. python load_tests/receipt_dictionary.py FILE

A published dictionary never changes: write a new file, and give it a number in packing.py.
"""

from __future__ import annotations

import random
from decimal import Decimal
from pathlib import Path  # noqa: TC003 - typer reads the annotation
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer
import zstandard

from gateway.accounting.receipt import Attempt, CloseTerms, EngineShare, with_savings
from load_tests.day_receipts import day_of_receipts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gateway.accounting.receipt import Receipt

_RECEIPTS = 4_000
_NOW_S = 1_790_000_000
_MODELS = ("teacher", "student", "large", "small", "gpt-4.1", "claude-sonnet", "llama-70b", "qwen3-8b", "mistral")
_UNGUIDED = ("teacher_late", "teacher_unavailable", "constrained", "queue_full", "budget")


def main(
    file: Annotated[Path, typer.Argument(help="File to write.")],
    size: Annotated[int, typer.Option(min=256, help="Bytes of the dictionary.")] = 4_096,
) -> None:
    """Train a dictionary, and print the compression ratio of receipts outside of the training set."""
    file.write_bytes(zstandard.train_dictionary(size, [one.to_json() for one in samples(1)]).as_bytes())
    packer = zstandard.ZstdCompressor(3, zstandard.ZstdCompressionDict(file.read_bytes()), write_dict_id=False)
    others = [one.to_json() for one in samples(2)]
    packed = [packer.compress(one) for one in others]
    typer.echo(
        f"{sum(map(len, others)) / len(others):.0f} bytes of JSON, {sum(map(len, packed)) / len(packed):.0f} packed"
    )


def samples(seed: int) -> Iterator[Receipt]:
    """Yield receipts with the facts that each kind of request has."""
    dice = random.Random(seed)
    for one in day_of_receipts(_RECEIPTS, 50, _NOW_S, seed):
        facts = _facts(dice, one)
        for role in ("teacher", "student"):
            share: EngineShare | None = getattr(one, role)
            if share is not None:
                facts[role] = _share(dice, share)
        yield with_savings(msgspec.structs.replace(one, **facts))


def _facts(dice: random.Random, one: Receipt) -> dict[str, object]:
    facts: dict[str, object] = {
        "baseline_model": dice.choice(_MODELS),
        "baseline_basis": dice.choice(("engine", "tokenizer", "tokenizer", "estimate", None)),
        "baseline_error_usd": dice.choice((None, Decimal(0), Decimal(dice.randint(1, 10**6)).scaleb(-9))),
        "finish_reason": dice.choice(("stop", "stop", "stop", "length", "tool_calls", None)),
    }
    if one.unguided is not None:
        facts["unguided"] = dice.choice(_UNGUIDED)
    if dice.random() < 0.05:
        share = EngineShare(
            dice.choice(_MODELS), dice.randint(50, 2_000), 0, Decimal(dice.randint(1, 10**6)).scaleb(-9)
        )
        facts["attempts"] = (
            Attempt(dice.choice(_MODELS), dice.choice(("engine_timeout", "engine_unavailable")), share),
        )
    if dice.random() < 0.05:
        facts |= {"mode": "shadow", "shadow_of": one.id}
    elif dice.random() < 0.05:
        facts |= {"mode": "guidance", "close": CloseTerms(one.created + 600, dice.randint(1, 500))}
    elif dice.random() < 0.05:
        facts |= {"mode": "edge", "edge_of": one.id, "id": f"{one.id}-edge"}
    if dice.random() < 0.05:
        facts |= {"estimated": True, "budget": "soft"}
    return facts


def _share(dice: random.Random, share: EngineShare) -> EngineShare:
    return msgspec.structs.replace(
        share,
        model=dice.choice(_MODELS),
        cost_usd=Decimal(dice.randint(1, 10**8)).scaleb(-dice.choice((9, 10, 12))),
        cached_input_tokens=dice.choice((0, 0, share.input_tokens // 2)),
        estimated=dice.random() < 0.05,
    )


if __name__ == "__main__":
    typer.run(main)
