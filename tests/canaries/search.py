"""Texts that may appear only where a test put them, and the search for them."""

from __future__ import annotations

import base64
import secrets
from dataclasses import dataclass, field

_TELLING_CHARS = 14  # of a text that was cut, so much is enough to be found


@dataclass(frozen=True)
class Found:
    """A canary in a place where it is forbidden."""

    canary: str
    place: str
    around: str


@dataclass
class Canaries:
    """Unique texts by name. They do not have the shape of a key, so no filter by shape removes them."""

    texts: dict[str, str] = field(default_factory=dict)
    places: dict[str, int] = field(default_factory=dict)
    found: list[Found] = field(default_factory=list)

    def __getitem__(self, name: str) -> str:
        if name not in self.texts:
            self.texts[name] = f"zq{secrets.token_hex(12)}qz"
        return self.texts[name]

    def search(self, place: str, *texts: str, allowed: tuple[str, ...] = ()) -> None:
        """Search for each canary, whole, cut or in base64, except those whose names begin with one of `allowed`."""
        self.places[place] = self.places.get(place, 0) + len(texts)
        text = "\0".join(texts)
        for name, canary in self.texts.items():
            if allowed and name.startswith(allowed):
                continue
            for written in _written(canary):
                if (at := text.find(written)) >= 0:
                    self.found.append(Found(name, place, text[max(0, at - 150) : at + 80]))
                    break


def _written(text: str) -> list[str]:
    shifted = (base64.b64encode(b"x" * shift + text.encode()).decode()[4:16] for shift in range(3))
    return [text[:_TELLING_CHARS], *shifted]
