"""The words of generated problems, and how one is drawn. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Sequence

T = TypeVar("T")


class ProblemRandom:
    """Draws for one problem.

    Only `Random.random` is asked: for one seed Python promises its numbers, and no other method's, for all versions.
    """

    def __init__(self, seed: str) -> None:
        self._random = Random(seed)  # noqa: S311 (a problem is no secret)

    def below(self, end: int) -> int:
        """0 to `end` - 1."""
        return int(self._random.random() * end)

    def between(self, low: int, high: int) -> int:
        """Both included."""
        return low + self.below(high - low + 1)

    def pick(self, values: Sequence[T]) -> T:
        return values[self.below(len(values))]

    def some(self, values: Sequence[T], count: int) -> list[T]:
        """So many different ones, in the order drawn."""
        rest = list(values)
        return [rest.pop(self.below(len(rest))) for _ in range(count)]


@dataclass(frozen=True, slots=True)
class Noun:
    """A thing that can be counted."""

    one: str
    many: str

    def count(self, number: int) -> str:
        """`1 apple`, `2 apples`."""
        return f"{number} {self.one if number == 1 else self.many}"

    @property
    def a(self) -> str:
        """`an apple`, `a pear`. Right for the words below, which all sound as they are spelt."""
        return f"{'an' if self.one[0] in 'aeiou' else 'a'} {self.one}"


def _nouns(words: str) -> tuple[Noun, ...]:
    return tuple(Noun(one, many or one + "s") for one, _, many in (word.partition("/") for word in words.split(", ")))


# fmt: off
NAMES = (
    "Ada", "Amir", "Bea", "Bruno", "Carla", "Chen", "Dario", "Dora", "Elif", "Emil", "Farah", "Felix", "Greta",
    "Hana", "Hugo", "Ines", "Ivo", "Jana", "Jonas", "Kemal", "Kira", "Lars", "Leila", "Luis", "Maja", "Marek",
    "Nadia", "Noah", "Olga", "Omar", "Petra", "Pia", "Quentin", "Rana", "Rosa", "Samir", "Selma", "Tariq", "Tilda",
    "Uma", "Viktor", "Wanda", "Yusuf", "Zoe",
)
# fmt: on
KEPT = _nouns(
    "marble, sticker, postcard, shell, stamp, badge, bead, button, coin, acorn, comic, toy car, eraser, ribbon, pebble"
)
"""What a person keeps, finds, gives away."""
HOLDERS = _nouns("box/boxes, bag, packet, tin, envelope")
GOODS = (
    (Noun("notebook", "notebooks"), 2, 6),
    (Noun("pen", "pens"), 1, 4),
    (Noun("apple", "apples"), 1, 3),
    (Noun("umbrella", "umbrellas"), 7, 15),
    (Noun("mug", "mugs"), 4, 12),
    (Noun("scarf", "scarves"), 8, 20),
    (Noun("lamp", "lamps"), 15, 40),
    (Noun("cake", "cakes"), 6, 18),
    (Noun("ticket", "tickets"), 5, 14),
    (Noun("brush", "brushes"), 2, 9),
    (Noun("orange", "oranges"), 1, 3),
    (Noun("book", "books"), 6, 25),
)
"""What is sold, and from what price to what, in dollars."""
BAKED = _nouns("roll, bun, muffin, pretzel, biscuit, loaf/loaves, pie, tart")
CROPS = _nouns("tomato/tomatoes, cabbage, carrot, tulip, onion, pumpkin, melon, leek")
JOBS = ("in a bakery", "at a garden centre", "in a library", "at a bicycle shop", "on a farm", "in a cinema")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
ASIDES = (
    "{name} has {number} cousins.",
    "{name} lives at number {number}.",
    "It is {number} degrees outside.",
    "{name} got up {number} minutes late that day.",
    "A neighbour of {name} has {number} hens.",
    "{name}'s favourite number is {number}.",
    "The trip home takes {name} {number} minutes.",
)
"""Sentences with a number that has nothing to do with the question."""
