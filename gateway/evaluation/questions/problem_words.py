"""Vocabulary and random numbers of generated problems. Pure functions."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Sequence

T = TypeVar("T")


class ProblemRandom:
    """Random numbers of one problem.

    Only `Random.random` is used: Python guarantees its results for a seed in all versions, unlike those of others.
    """

    def __init__(self, seed: str) -> None:
        self._random = Random(seed)  # noqa: S311 (not security-relevant)

    def below(self, end: int) -> int:
        """Return a number from 0 to `end` - 1."""
        return int(self._random.random() * end)

    def between(self, low: int, high: int) -> int:
        """Return a number from `low` to `high`, both included."""
        return low + self.below(high - low + 1)

    def pick(self, values: Sequence[T]) -> T:
        return values[self.below(len(values))]

    def some(self, values: Sequence[T], count: int) -> list[T]:
        """Return `count` different values in random order."""
        rest = list(values)
        return [rest.pop(self.below(len(rest))) for _ in range(count)]


@dataclass(frozen=True, slots=True)
class Noun:
    """A countable noun."""

    one: str
    many: str

    def count(self, number: int) -> str:
        """Return `1 apple` or `2 apples`."""
        return f"{number} {self.one if number == 1 else self.many}"

    @property
    def a(self) -> str:
        """Return the noun with its article, `an apple` or `a pear`; valid for the nouns below."""
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
"""Things that a person keeps, finds or gives away."""
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
"""Goods with their minimum and maximum price in dollars."""
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
"""Sentences with an irrelevant number."""
