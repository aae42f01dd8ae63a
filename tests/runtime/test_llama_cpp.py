"""llama.cpp in this process: errors of its library."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from gateway.errors import StartupError
from gateway.runtime.llama_cpp import LlamaOptions, serve


def test_a_library_that_xllamacpp_misses_is_named_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reason = "libgomp.so.1: cannot open shared object file: No such file or directory"
    (tmp_path / "xllamacpp.py").write_text(f"raise ImportError({reason!r})\n")
    monkeypatch.delitem(sys.modules, "xllamacpp", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(StartupError) as raised:
        serve(Path("model.gguf"), "model", LlamaOptions(), host="127.0.0.1")
    assert reason in raised.value.message
    assert "install the named library" in raised.value.message
