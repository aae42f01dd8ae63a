"""Stories of generated problems. Each function takes a number of steps and tells a story with exactly as many."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import reduce
from itertools import pairwise
from random import Random
from typing import TYPE_CHECKING, TypeAlias, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

T = TypeVar("T")
Sum: TypeAlias = int | tuple[str, "Sum", "Sum"]
"""A number in the story, or ("+", "-", "*" or "/", one sum, another)."""
_MOST_TO_DOUBLE = 200
_ENOUGH_TO_GIVE = 60


class ProblemRandom:
    """Random numbers from `Random.random` only, whose results for a seed are equal in all versions of Python."""

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
PEOPLE = (
    "Ada", "Amir", "Bea", "Bruno", "Carla", "Chen", "Dario", "Dora", "Elif", "Emil", "Farah", "Felix", "Greta",
    "Hana", "Hugo", "Ines", "Ivo", "Jana", "Jonas", "Kemal", "Kira", "Lars", "Leila", "Luis", "Maja", "Marek",
    "Nadia", "Noah", "Olga", "Omar", "Petra", "Pia", "Quentin", "Rana", "Rosa", "Samir", "Selma", "Tariq", "Tilda",
    "Uma", "Viktor", "Wanda", "Yusuf", "Zoe",
)
GOODS = (
    (Noun("notebook", "notebooks"), 2, 6), (Noun("pen", "pens"), 1, 4), (Noun("apple", "apples"), 1, 3),
    (Noun("umbrella", "umbrellas"), 7, 15), (Noun("mug", "mugs"), 4, 12), (Noun("scarf", "scarves"), 8, 20),
    (Noun("lamp", "lamps"), 15, 40), (Noun("cake", "cakes"), 6, 18), (Noun("ticket", "tickets"), 5, 14),
    (Noun("brush", "brushes"), 2, 9), (Noun("orange", "oranges"), 1, 3), (Noun("book", "books"), 6, 25),
)
"""Goods with their minimum and maximum price in dollars."""
# fmt: on
KEPT = _nouns(
    "marble, sticker, postcard, shell, stamp, badge, bead, button, coin, acorn, comic, toy car, eraser, ribbon, pebble"
)
"""Things that a person keeps, finds or gives away."""
HOLDERS = _nouns("box/boxes, bag, packet, tin, envelope")
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


@dataclass(slots=True)
class Story:
    """An unfinished story: the calculation with its result, and the sentences, of which the last is the question."""

    sum: Sum
    sentences: list[str] = field(default_factory=list)

    @property
    def value(self) -> int:
        return worth(self.sum)

    @property
    def steps(self) -> int:
        """Return the number of different calculations."""
        return len(operations(self.sum))

    def then(self, sign: str, other: Sum, sentence: str | None = None) -> None:
        self.sum = (sign, self.sum, other)
        if sentence is not None:
            self.sentences.append(sentence)

    def ask(self, question: str) -> Story:
        self.sentences.append(question)
        return self


def operations(total: Sum) -> frozenset[Sum]:
    """Return the different calculations of a sum."""
    if isinstance(total, int):
        return frozenset()
    return frozenset({total}) | operations(total[1]) | operations(total[2])


def worth(total: Sum) -> int:
    """Evaluate a sum. Divisions have no remainder."""
    if isinstance(total, int):
        return total
    sign, left, right = total[0], worth(total[1]), worth(total[2])
    if sign == "/":
        whole, rest = divmod(left, right)
        assert not rest, "a story divides what can be divided"
        return whole
    return left + right if sign == "+" else left - right if sign == "-" else left * right


def collection(draw: ProblemRandom, steps: int) -> Story:
    """Tell of a person who finds, buys and gives away things."""
    name, *friends = draw.some(PEOPLE, 4)
    thing, holder = draw.pick(KEPT), draw.pick(HOLDERS)
    start = draw.between(15, 90)
    story = Story(start, [f"{name} has {thing.count(start)}."])
    last = ""
    while story.steps < steps:
        kind = _next_event(draw, story, steps - story.steps, last)
        last = kind
        some, each = draw.between(3, 12), draw.between(4, 9)
        if kind == "find":
            story.then("+", some, f"Then {name} finds {thing.count(some)} more.")
        elif kind == "give":
            story.then("-", some, f"{name} gives {thing.count(some)} to {draw.pick(friends)}.")
        elif kind == "half":
            story.then("/", 2, f"Half of what {name} has by then gets lost.")
        elif kind == "double":
            story.then("*", 2, f"After that {name} swaps everything for twice as many smaller ones.")
        elif kind == "buy":
            boxes = draw.between(2, 6)
            story.then("+", ("*", boxes, each), f"{name} buys {holder.count(boxes)} with {thing.count(each)} in each.")
        else:
            heads = draw.between(2, 3)
            story.then("-", ("*", heads, some), f"{name} gives {thing.count(some)} to each of {heads} friends.")
    return story.ask(f"How many {thing.many} does {name} have now?")


def _next_event(draw: ProblemRandom, story: Story, steps: int, last: str) -> str:
    fits = ["find"]
    if story.value > 40:
        fits.append("give")
    if story.value % 2 == 0 and story.value >= 20 and last != "double":
        fits.append("half")
    if story.value <= _MOST_TO_DOUBLE and last != "half":
        fits.append("double")
    if steps > 1:
        fits += ["buy"] * 2
        if story.value > 60:
            fits += ["share"] * 2
    return draw.pick([kind for kind in fits if kind != last] or fits)


def shopping(draw: ProblemRandom, steps: int) -> Story:
    """Tell of a purchase and ask for the total or the change."""
    name = draw.pick(PEOPLE)
    parts: list[str] = []
    costs: list[Sum] = []
    for thing, low, high in draw.some(GOODS, (steps + 1) // 2):
        number, price = draw.between(2, 8), draw.between(low, high)
        parts.append(f"{thing.count(number)} at ${price} each")
        costs.append(("*", number, price))
    story = Story(reduce(_plus, costs), [f"{name} buys {_listed(parts)}."])
    if steps % 2:
        return story.ask(f"How many dollars does {name} pay in all?")
    note = (story.value // 10 + draw.between(1, 4)) * 10
    story.sum = ("-", note, story.sum)
    story.sentences += [f"{name} pays with ${note}.", f"How many dollars does {name} get back?"]
    return story


def journey(draw: ProblemRandom, steps: int) -> Story:
    """Tell of a trip at several speeds and ask for the distance covered or left."""
    name = draw.pick(PEOPLE)
    how, low, high = draw.pick((("cycles", 12, 24), ("walks", 3, 6), ("drives", 45, 95), ("sails", 8, 18)))
    parts: list[str] = []
    ways: list[Sum] = []
    for _ in range((steps + 1) // 2):
        hours, speed = draw.between(2, 5), draw.between(low, high)
        parts.append(f"for {hours} hours at {speed} km an hour")
        ways.append(("*", hours, speed))
    story = Story(reduce(_plus, ways), [f"{name} {how} {_listed(parts, 'and then')}."])
    if steps % 2:
        return story.ask(f"How many kilometres does {name} travel in all?")
    whole = story.value + draw.between(5, 60)
    story.sum = ("-", whole, story.sum)
    story.sentences.insert(0, f"The way to the coast is {whole} km long.")
    return story.ask(f"How many kilometres are then still ahead of {name}?")


def wages(draw: ProblemRandom, steps: int) -> Story:
    """Tell of a person who earns money and spends some."""
    name, job = draw.pick(PEOPLE), draw.pick(JOBS)
    days, hours, pay = draw.between(2, 6), draw.between(3, 8), draw.between(9, 21)
    story = Story(("*", ("*", days, hours), pay), [f"At first {name} has no money."])
    story.sentences.append(f"{name} works {job} for {hours} hours on each of {days} days and gets ${pay} an hour.")
    rest = draw.some(GOODS, len(GOODS))
    while story.steps < steps:
        thing, low, high = rest.pop()
        price, number = draw.between(low + 2, high + 2), draw.between(2, 4)
        kinds = ["gift", "one"] + (["several"] * 2 if steps - story.steps > 1 else [])
        kind = draw.pick([kind for kind in kinds if kind == "gift" or story.value > price * number + 10])
        if kind == "gift":
            gift = draw.between(5, 60)
            whose = draw.pick(("An aunt", "An uncle", "A grandmother", "A neighbour"))
            story.then("+", gift, f"{whose} gives {name} another ${gift}.")
        elif kind == "one":
            story.then("-", price, f"{name} buys {thing.a} for ${price}.")
        else:
            story.then("-", ("*", number, price), f"{name} buys {thing.count(number)} at ${price} each.")
    return story.ask(f"How many dollars does {name} have in the end?")


def family(draw: ProblemRandom, steps: int) -> Story:
    """Tell of several people, each with an amount relative to the previous one, and ask for the total."""
    names, thing = draw.some(PEOPLE, steps // 2 + 1), draw.pick(KEPT)
    amount: Sum = draw.between(12, 40)
    story = Story(amount, [f"{names[0]} has {thing.count(worth(amount))}."])
    statements = []
    for before, name in pairwise(names):
        amount, sentence = compared(draw, amount, name, before, thing.many)
        statements.append(sentence)
        story.then("+", amount)
    story.sentences += statements
    if steps % 2:
        broken = draw.between(3, 11)
        story.then("-", broken, f"Together they give away {thing.count(broken)}.")
    who = _listed(names[: steps // 2 + 1])
    return story.ask(f"How many {thing.many} do {who} have together{' after that' if steps % 2 else ''}?")


def compared(draw: ProblemRandom, amount: Sum, name: str, before: str, many: str) -> tuple[Sum, str]:
    """Return the amount of `name`, stated relative to the previous person's, and its sentence."""
    value, some = worth(amount), draw.between(2, 9)
    kinds = ["more"] + ["fewer"] * (value > some + 5) + ["twice"] * (value < 80) + ["half"] * (value % 2 == 0)
    kind = draw.pick(kinds)
    if kind == "more":
        return ("+", amount, some), f"{name} has {some} more {many} than {before}."
    if kind == "fewer":
        return ("-", amount, some), f"{name} has {some} fewer {many} than {before}."
    if kind == "twice":
        return ("*", amount, 2), f"{name} has twice as many {many} as {before}."
    return ("/", amount, 2), f"{name} has half as many {many} as {before}."


def bakery(draw: ProblemRandom, steps: int) -> Story:
    """Tell of a baker who bakes, sells, and packs the rest."""
    return _packed(draw, steps, BAKED, "{name} bakes {groups} trays with {each} {many} on each.", "bakes", "trays")


def garden(draw: ProblemRandom, steps: int) -> Story:
    """Tell of a gardener who plants, loses some, and packs the rest."""
    return _packed(draw, steps, CROPS, "{name} grows {groups} rows of {many} with {each} in each row.", "grows", "rows")


def _packed(draw: ProblemRandom, steps: int, things: Sequence[Noun], first: str, makes: str, place: str) -> Story:
    """Tell of production and losses, then of packing and sales if steps remain."""
    name, many = draw.pick(PEOPLE), draw.pick(things).many
    groups, each = draw.between(5, 12), draw.between(8, 20)
    story = Story(("*", groups, each), [first.format(name=name, groups=groups, each=each, many=many)])
    ends = min(3, max(0, steps - 2))  # packing, sales, expenses
    while story.steps < steps - ends - 1:
        some, groups = draw.between(3, 9), draw.between(2, 5)
        if steps - ends - 1 - story.steps > 1 and draw.below(2):
            story.then("+", ("*", groups, some), f"Later {name} {makes} {groups} more {place} of {some}.")
        elif story.value > _ENOUGH_TO_GIVE:
            story.then("-", some, f"{some} {many} are given to a school.")
        else:
            story.then("+", some, f"A neighbour brings {some} more {many}.")
    size = draw.between(4, 9)
    whole = story.value // size
    sold = story.value % size + size * draw.between(1, min(3, whole - 2))
    story.then("-", sold, f"{sold} {many} are sold on {draw.pick(DAYS)} morning.")
    if not ends:
        return story.ask(f"How many {many} are left?")
    story.then("/", size, f"{name} packs the other {many} in bags of {size}.")
    if ends == 1:
        return story.ask("How many bags are there?")
    price = draw.between(6, 14)
    story.then("*", price, f"All the bags are sold for ${price} each.")
    if ends == 2:
        return story.ask("How many dollars do the bags bring in?")
    spent = draw.between(5, min(60, story.value - 1))
    story.then("-", spent, f"To make all this, {name} had spent ${spent}.")
    return story.ask(f"How many dollars from the bags are left after what {name} had spent?")


def reading(draw: ProblemRandom, steps: int) -> Story:
    """Tell of a person who reads a book, and ask for the pages or days left."""
    name = draw.pick(PEOPLE)
    days, pages = draw.between(2, 6), draw.between(12, 40)
    last = draw.between(10, 30)
    story = Story(("*", days, pages), [f"For {days} days {name} reads {pages} pages a day."])
    # The question needs one step for the pages left, and another one for the days.
    ends = 1 if steps == 2 else draw.between(1, 2)
    while story.steps < steps - ends:
        more, again = draw.between(8, 35), draw.between(2, 4)
        if steps - ends - story.steps > 1 and draw.below(3):
            story.then("+", ("*", again, more), f"For the next {again} days {name} reads {more} pages a day.")
        else:
            story.then("+", more, f"Then there is a day on which {name} reads {more} pages.")
    whole = story.value + last * draw.between(2, 8)
    story.sum = ("-", whole, story.sum)
    story.sentences.insert(0, f"A book has {whole} pages.")
    if ends == 1:
        return story.ask(f"How many pages are then left for {name} to read?")
    story.then("/", last, f"From then on {name} reads {last} pages a day.")
    return story.ask("How many more days does the rest of the book take?")


STORIES: Mapping[str, Callable[[ProblemRandom, int], Story]] = {
    story.__name__: story for story in (collection, shopping, journey, wages, family, bakery, garden, reading)
}
"""All stories by name; each supports any number of steps from two on."""


def _plus(total: Sum, part: Sum) -> Sum:
    return "+", total, part


def _listed(parts: Sequence[str], joined: str = "and") -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} {joined} {parts[-1]}"
