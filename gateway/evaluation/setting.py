"""A point of a grid: the models, the guidance, and the form of the request."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import orjson
from msgspec import structs

from gateway.policy.projections import CUTOFF
from gateway.policy.resolve import resolve
from gateway.policy.schema import Route, TenantPolicy
from gateway.protocol.chat import parse_chat
from gateway.protocol.text import parse_text_completion

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gateway.evaluation.auto_length import AutoLength
    from gateway.evaluation.question import Question
    from gateway.policy.plan import EngineSnapshot, Plan
    from gateway.policy.projections import Exemplar, Placement, Projection
    from gateway.policy.schema import Boundary
    from gateway.protocol.requests import CompletionRequest


Mode = Literal["teacher", "student", "guided"]
Form = Literal["chat", "completion"]

# A model that was given example questions may continue with a question of its own.
_NEXT_QUESTION = "\nQ:"


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """The way in which questions are answered.

    Attributes:
        mode: The teacher alone, the student alone, or the student after the teacher's guidance.
        form: The question as a chat, or after `shots` exemplars as a raw prompt (paper, Appendix D).
        shots: Number of exemplars in the caller's prompt, for both models; in a chat they are earlier turns.
        max_tokens: Token limit of the answer, including guidance.
        temperature, top_p, seed: Sampling parameters of the caller.
        tokens: m, the length of the guidance in tokens; 0 unless guided, or if `auto` chooses it.
        auto: Rule that chooses m for each question; None: m is `tokens`.
        projection, placement, boundary: As in a policy.
        exemplars_file: File of the projection's exemplars, if they are not its own.
        policies: Folder with the projection's file, if it is not a shipped one.
    """

    mode: Mode
    form: Form = "chat"
    shots: int = 0
    max_tokens: int = 300
    temperature: float = 0.0
    top_p: float | None = None
    seed: int | None = None
    tokens: int = 0
    auto: AutoLength | None = field(default=None, hash=False)
    projection: Projection = CUTOFF
    placement: Placement = "prefix"
    boundary: Boundary = "word"
    exemplars_file: str | None = None
    policies: str | None = None

    @property
    def m(self) -> int | Literal["auto"]:
        """Return the length of the guidance as in a policy."""
        return self.tokens if self.auto is None else "auto"

    @property
    def name(self) -> str:
        """Return a readable name that is unique in a run."""
        request = f"{self.form}, {self.shots} shots" if self.shots else self.form
        sampling = "" if not self.temperature else f", temperature {self.temperature:g}"
        sampling += "" if self.top_p is None else f", top_p {self.top_p:g}"
        sampling += "" if self.seed is None else f", seed {self.seed}"
        name = f"{self.mode}, {request}, {self.max_tokens} tokens{sampling}"
        if self.mode != "guided":
            return name
        cut = "" if self.boundary == "word" else f", cut at a {self.boundary}"
        return f"{name}, {self.projection.name}, {self.placement}, m={self.m}{cut}"

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for files."""
        plain: dict[str, Any] = {
            "name": self.name,
            "mode": self.mode,
            "form": self.form,
            "shots": self.shots,
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "seed": self.seed,
        }
        if self.mode == "guided":
            plain |= {
                "tokens": self.m,
                "projection": self.projection.name,
                "placement": self.placement,
                "boundary": self.boundary,
            }
            if self.auto is not None:
                plain |= {"auto": dict(self.auto.block)}
                plain |= {} if self.auto.file is None else {"auto_file": self.auto.file}
            plain |= {} if self.exemplars_file is None else {"exemplars": self.exemplars_file}
            plain |= {} if self.policies is None else {"policies": self.policies}
        return plain

    def with_tokens(self, tokens: int) -> Setting:
        """Return the setting with another length of guidance, in tokens."""
        return replace(self, tokens=tokens, auto=None)

    @property
    def length(self) -> dict[str, Any]:
        """Return the policy keys of the guidance length."""
        return {"tokens": self.tokens or 1} if self.auto is None else {"tokens": "auto", "auto": self.auto.rule}

    def request(self, question: Question, exemplars: Sequence[Exemplar]) -> CompletionRequest:
        """Return the caller's request. Raises InvalidRequest for an empty question."""
        body: dict[str, Any] = {"model": "eval", "max_tokens": self.max_tokens, "temperature": self.temperature}
        body |= {} if self.top_p is None else {"top_p": self.top_p}
        body |= {} if self.seed is None else {"seed": self.seed}
        shown = exemplars[: self.shots]
        if self.form == "completion":
            prompt = "".join(f"Q: {one.question}\nA: {one.answer}\n\n" for one in shown) + f"Q: {question.text}\nA:"
            return parse_text_completion(orjson.dumps(body | {"prompt": prompt, "stop": [_NEXT_QUESTION]}))
        turns = [("user", one.question, "assistant", one.answer) for one in shown]
        messages = [
            {"role": role, "content": text} for turn in turns for role, text in ((turn[0], turn[1]), (turn[2], turn[3]))
        ]
        messages.append({"role": "user", "content": question.text})
        return parse_chat(orjson.dumps(body | {"messages": messages}))

    def plan(
        self, request: CompletionRequest, snapshot: Callable[[str], EngineSnapshot], teacher: str, student: str
    ) -> Plan:
        """Return the plan of a gateway with a policy of this setting."""
        route = Route.model_validate(
            {
                "model": "eval",
                "mode": self.mode,
                "teacher": teacher,
                "student": student,
                "baseline": teacher,
                "guidance": {
                    **self.length,
                    "placement": self.placement,
                    "boundary": self.boundary,
                },
            }
        )
        plan = resolve(TenantPolicy(tenant="eval", routes=(route,)), route, request, snapshot)
        if plan.guidance is None:
            return plan
        return structs.replace(plan, guidance=structs.replace(plan.guidance, projection=self.projection, stream=False))
