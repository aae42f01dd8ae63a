"""The input of a custom tool is decoded as its function's arguments arrive."""

from __future__ import annotations

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.protocol.responses.custom_input import CustomInput, decode_custom_input
from tests.cpu_time import cpu_seconds

TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=30) | st.text('\\"\n\t/u😀é', max_size=30)


def pieces(text: str, sizes: list[int]) -> list[str]:
    found = []
    for size in sizes:
        found.append(text[:size])
        text = text[size:]
    return [*found, text]


@given(TEXTS, st.lists(st.integers(1, 9), max_size=40), st.booleans())
def test_pieces_give_the_whole_input(text: str, sizes: list[int], ascii_only: bool) -> None:
    """Wherever the arguments are cut, also within an escape or a surrogate pair."""
    encoded = orjson.dumps(text).decode()
    if ascii_only:
        units = encoded.encode("utf-16-le")
        codes = [int.from_bytes(units[at : at + 2], "little") for at in range(0, len(units), 2)]
        encoded = "".join(chr(code) if code < 128 else f"\\u{code:04x}" for code in codes)
    arguments = f'{{ "input" : {encoded} }}'
    decoder = CustomInput()
    shown = [decoder.feed(piece) for piece in pieces(arguments, sizes)]
    assert "".join([*shown, decoder.finish()]) == decoder.text == text
    assert decode_custom_input(arguments) == text


@given(TEXTS, st.integers(0, 60))
def test_input_that_was_cut_off_is_a_beginning(text: str, size: int) -> None:
    """The token limit may end it anywhere."""
    arguments = orjson.dumps({"input": text}).decode()[: len('{"input":"') + size]
    assert text.startswith(decode_custom_input(arguments))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ('{"input":"a\\d\\users\\u00"}', "a\\d\\users\\u00"),  # an invalid escape stands for itself
        ('{"input":"a\nb"}', "a\nb"),
        ('{"input":"\\ud800x"}', "\ufffdx"),
        ('{"input":"a","more":1}', "a"),
        ('{"more":1,"input":"a"}', "a"),
        ('"a"', "a"),
        ("*** Begin Patch", "*** Begin Patch"),
        ('{"patch":"a"}', '{"patch":"a"}'),
        ('{"input":5}', '{"input":5}'),
        ("", ""),
    ],
)
def test_other_arguments_lose_nothing(arguments: str, text: str) -> None:
    """A model may not follow the declared form."""
    assert decode_custom_input(arguments) == text


def test_white_space_without_end_takes_linear_time() -> None:
    """Models write it when they lose their way in JSON. It is read on the event loop."""
    decoder, fed = CustomInput(), set[str]()
    decoder.feed("{")
    assert cpu_seconds(lambda: fed.update(decoder.feed(" \n ") for _ in range(30_000))) < 0.5
    assert fed == {""}
    assert decoder.feed('"input":') + decoder.feed(" ") + decoder.feed(' "a  b') + decoder.feed(" ") == "a  b "
