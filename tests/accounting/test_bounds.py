# ruff: noqa: E501, RUF001
"""The error bounds hold for real tokenizers, on text in many scripts."""

from __future__ import annotations

import itertools
from importlib.util import find_spec
from pathlib import Path

import pytest

from gateway.accounting.estimate import TextSize, count_text, recount_error, template_error, token_error
from gateway.config.models import ENCODINGS

ROOT = Path(__file__).parents[2]
TEXTS = {
    "a word": "Yes.",
    "English": "Janet sells 16 - 3 - 4 = 9 duck eggs a day. She makes 9 * 2 = $18 every day at the farmer's market.",
    "code": (ROOT / "gateway/pricing.py").read_text("utf-8"),
    "a page": (ROOT / "README.md").read_text("utf-8"),
    "JSON": (ROOT / "docs/schema/config.json").read_text("utf-8")[:8_000],
    "numbers": " ".join(str(n * 7919) for n in range(300)),
    "German": "Die Bäckerei verkauft vormittags 24 Brötchen und nachmittags halb so viele; ein Brötchen kostet 3 Euro. " * 5,
    "Polish": "Piekarz sprzedaje rano dwadzieścia cztery bułki, a po południu o połowę mniej. Ile zarobi dziennie? " * 5,
    "Turkish": "Fırıncı sabahları yirmi dört ekmek satar, öğleden sonra ise bunun yarısı kadar. Günde ne kazanır? " * 5,
    "Russian": "Пекарь утром продаёт двадцать четыре булочки, а после обеда вдвое меньше. Сколько он выручит? " * 5,
    "Greek": "Ο φούρναρης πουλάει το πρωί είκοσι τέσσερα ψωμάκια και το απόγευμα τα μισά. " * 5,
    "Chinese": "面包师上午卖出二十四个面包，下午卖出一半。每个面包三元，他一天能卖多少钱？" * 5,
    "Japanese": "パン屋は午前中に二十四個のパンを売り、午後にはその半分を売ります。一日の売り上げはいくらですか。" * 5,
    "Korean": "제빵사는 오전에 빵 스물네 개를 팔고 오후에는 그 절반을 팝니다. 하루에 얼마를 법니까?" * 5,
    "Hindi": "बेकर सुबह चौबीस रोटियाँ बेचता है और दोपहर में उसकी आधी। वह एक दिन में कितना कमाता है?" * 5,
    "Georgian": "მცხობელი დილით ოცდაოთხ პურს ყიდის, ნაშუადღევს კი მის ნახევარს." * 5,
    "emoji": "👩‍🍳🥐🥖🍞 " * 20,
}  # fmt: skip


def bundled() -> list[str]:
    """Return the tokenizers of four vendors that LiteLLM includes."""
    spec = find_spec("litellm")
    assert spec is not None
    assert spec.origin is not None
    files = sorted((Path(spec.origin).parent / "litellm_core_utils" / "tokenizers").glob("*_tokenizer.json"))
    assert len(files) == 2
    return [*ENCODINGS, *map(str, files)]


@pytest.mark.parametrize("name", TEXTS)
def test_counts_of_all_tokenizers_are_within_the_bound_of_each_other(name: str) -> None:
    text = TEXTS[name]
    counted = {one: count_text(one, text) for one in bundled()}
    assert len(set(counted.values())) > 1 or name == "a word", "nothing is tried where all agree"
    extent = TextSize.of([text])
    outside = [
        (tokenizer, other)
        for (tokenizer, many), (other, few) in itertools.permutations(counted.items(), 2)
        if abs(many - few) > token_error(many, extent)
    ]
    assert outside == []


def test_the_script_shows_in_how_many_bytes_a_character_takes() -> None:
    """The size of several texts is their sum."""
    names = {"English": "ascii", "German": "latin", "Polish": "latin", "Russian": "other", "Chinese": "other"}
    assert {name: TextSize.of([TEXTS[name]]).script for name in names} == names
    assert TextSize.of(["plain", "plain"]).script == "ascii"
    assert TextSize.of(["plain", TEXTS["Hindi"]]).script == "other"
    assert TextSize.of([]) == TextSize(0, 0)


def test_a_bound_is_no_wider_than_the_text_is_long() -> None:
    """Each token has at least one byte."""
    assert token_error(10, TextSize(12, 36)) == 26
    assert token_error(1, TextSize(4, 4)) == 3
    assert token_error(0, TextSize(0, 0)) == 0


def test_a_count_of_the_models_own_tokenizer_has_a_narrower_bound() -> None:
    plain = TextSize(4_000, 4_000)
    assert 0 < recount_error(1_000) < token_error(1_000, plain) / 10
    assert template_error(3) == 44
