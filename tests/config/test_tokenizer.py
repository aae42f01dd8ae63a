"""The setting `tokenizer` with a file: it is loaded once, since that blocks all threads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson
import pytest
import tokenizers

from gateway.config.models import tokenizer_file
from gateway.config.scalars import InvalidValue

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths of the tokenizers that are loaded."""
    paths: list[str] = []
    real = tokenizers.Tokenizer

    class Noting:
        @staticmethod
        def from_file(path: str) -> Any:
            paths.append(path)
            return real.from_file(path)

    monkeypatch.setattr(tokenizers, "Tokenizer", Noting)
    return paths


def write(file: Path, *words: str) -> None:
    """Replace the file by a tokenizer of these words."""
    model = {"type": "WordLevel", "unk_token": "a", "vocab": {word: number for number, word in enumerate(words)}}
    fresh = file.with_name("fresh")
    fresh.write_bytes(orjson.dumps({"version": "1.0", "added_tokens": [], "model": model}))
    fresh.rename(file)


def test_an_unchanged_file_is_loaded_once(tmp_path: Path, loaded: list[str]) -> None:
    file = tmp_path / "it.json"
    write(file, "a")
    for _ in range(3):
        assert tokenizer_file("it.json", tmp_path) == str(file)
    assert loaded == [str(file)]
    write(file, "a", "b")
    tokenizer_file("it.json", tmp_path)
    assert loaded == [str(file)] * 2


def test_a_file_that_is_invalid_or_gone_is_an_issue(tmp_path: Path) -> None:
    file = tmp_path / "it.json"
    write(file, "a")
    tokenizer_file("it.json", tmp_path)
    file.write_text("{}")
    with pytest.raises(InvalidValue, match="no tokenizer could be read from"):
        tokenizer_file("it.json", tmp_path)
    file.unlink()
    with pytest.raises(InvalidValue, match=r"no tokenizer could be read from .*: no such file"):
        tokenizer_file("it.json", tmp_path)
