"""The table of failures: every fault, met by each kind of call, through a whole gateway.

    python -m tests.failure_table > docs/reference/failures.md    writes the document from tests/failure_cells.py
    python -m tests.failure_table --observe                plays all faults, and prints that file anew: read its diff

Each cell has its own engine with its own path, so that no call sees the effects of another.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import httpx
import orjson

from gateway.guidance.trim import trim
from tests.failure_cells import CELLS
from tests.fault_engine import GUIDANCE_TOKENS, SECRET, TEXT, FaultEngine, refusing
from tests.faults import FAULTS, PLAYS, Cell, Fault, Row
from tests.gateway_process import KEY, GatewayProcess, guided, model, running_gateway

if TYPE_CHECKING:
    from collections.abc import Iterator

    Json = dict[str, Any]

COLUMNS = (
    "student", "student stream", "json of two", "stream of two", "guided stream", "guided stream of two", "teacher",
    "teacher stream",
)  # fmt: skip
UNGUIDED_COLUMNS = ("student", "student stream", "json of two", "stream of two")
GUIDANCE = trim(TEXT, cut=True).text
PATIENT = {"connect": "30s", "first_token": "30s", "idle": "30s", "total": "60s"}
SHORT = {
    "first_token": {"first_token": "2s"},
    "idle": {"idle": "2s"},
    "total": dict.fromkeys(PATIENT, "5s"),  # the others are parts of it
}
AT_ONCE = 12
HUGE_AT_ONCE = 4
LIMIT_S = 120  # more than PATIENT, so that the gateway's timeout comes first


@dataclass(frozen=True)
class Case:
    """A fault of a protocol and a kind of call that meets it."""

    fault: Fault
    protocol: str
    column: str

    @property
    def name(self) -> str:
        return f"{self.fault.name}-{self.protocol}-{self.column.replace(' ', '-')}"

    @property
    def path(self) -> str:
        return f"{self.protocol}/{self.fault.name}/{self.column.replace(' ', '-')}"

    @property
    def streams(self) -> bool:
        """Return whether the caller requests a stream."""
        return "stream" in self.column

    @property
    def is_streamed(self) -> bool:
        """Return whether the call to the faulty engine is streamed."""
        return self.streams or self.column == "json of two"


def cases() -> list[Case]:
    return [
        Case(fault, protocol, column)
        for fault in FAULTS
        for column in COLUMNS
        for protocol in fault.protocols
        if (fault.sse if Case(fault, protocol, column).is_streamed else fault.json) is not None
    ]


@dataclass
class World:
    """A gateway over the faulty engine: one route per case, and a teacher and a student without faults."""

    faulty: FaultEngine
    gateway: GatewayProcess
    client: httpx.Client
    _reading: Lock = field(default_factory=Lock)
    _engines: Json = field(default_factory=dict)
    _read_at: float = 0.0

    def meet(self, case: Case) -> Cell:
        """Make the case's call and return its outcome."""
        body = {"model": case.name, "messages": [{"role": "user", "content": case.name}], "stream": case.streams}
        answer = self.client.post(
            f"{self.gateway.url}/v1/chat/completions", headers={"Authorization": f"Bearer {KEY}"}, json=body
        )
        receipt = self.gateway.wait_for_log("request", id=answer.headers["x-request-id"], limit_s=LIMIT_S)
        assert SECRET not in answer.text
        assert "127.0.0.1" not in answer.text
        return Cell(
            _reply(case, answer),
            _receipt(case, receipt),
            len(self.faulty.requests[case.path]),
            self._breaker(case.name),
        )

    def _breaker(self, name: str) -> str:
        """Return whether an engine's breaker is open or pauses a tenant; empty if all calls pass.

        One reply names all engines, so all waiting cases share it.
        """
        requested_at = time.monotonic()
        with self._reading:
            if self._read_at < requested_at:
                self._read_at = time.monotonic()
                self._engines = self.client.get(f"{self.gateway.admin_url}/readyz").json()["engines"]
            engine = self._engines[name]
        if engine["breaker"] != "closed":
            return f"breaker {engine['breaker']}"
        return "tenant paused" if engine["paused_tenants"] else ""

    def meet_all(self) -> dict[str, dict[str, Cell]]:
        """Return the outcome of each case, by fault and by `column/protocol`."""
        met: dict[str, dict[str, Cell]] = {}
        # The megabytes come last, a few at a time: they keep the processes busy, and others have short deadlines.
        for huge, at_once in ((False, AT_ONCE), (True, HUGE_AT_ONCE)):
            with ThreadPoolExecutor(at_once) as pool:
                some = [case for case in cases() if case.fault.huge is huge]
                for case, cell in zip(some, pool.map(self.meet, some), strict=True):
                    met.setdefault(case.fault.name, {})[f"{case.column}/{case.protocol}"] = cell
        return met


@contextmanager
def world(folder: Path, redis_url: str) -> Iterator[World]:
    with ExitStack() as stack:
        key = folder / "key"
        key.write_text(SECRET)
        faulty = stack.enter_context(FaultEngine(PLAYS).running())
        nobody = stack.enter_context(refusing())
        models = [
            _model("big", "tgi", faulty.base("tgi/none/big"), PATIENT, key),
            _model("small", "openai", faulty.base("openai/none/small"), PATIENT, key),
            _model("second", "openai", faulty.base("openai/none/second"), PATIENT, key),
            _model("second-guided", "openai", faulty.base("openai/none/second-guided"), PATIENT, key),
        ]
        routes = []
        for case in cases():
            always_stream = case.column == "json of two"
            if case.fault.play is not None:
                base, more = faulty.base(case.path), {}
            else:  # Failed probes would open the circuit before the call.
                base, more = nobody, {"breaker": {"failures": 1000}}
            models.append(
                _model(case.name, case.protocol, base, _timeouts(case), key, always_stream=always_stream) | more
            )
            routes.append(_route(case))
        gateway = stack.enter_context(
            running_gateway(folder, redis_url=redis_url, redis={"prefix": "faults"}, models=models, routes=routes)
        )
        # One shared client: separate clients would each read the certificates, and starve the thread of the engine.
        yield World(faulty, gateway, stack.enter_context(httpx.Client(timeout=LIMIT_S)))


def _timeouts(case: Case) -> Json:
    """Shorten only the deadline that ends the case's stall.

    On a busy machine another short deadline could expire first.
    """
    if not case.fault.stalls:
        return PATIENT
    return PATIENT | SHORT[case.fault.stalls if case.is_streamed else "total"]


def _model(name: str, protocol: str, base: str, timeouts: Json, key: Path, *, always_stream: bool = False) -> Json:
    known = {"continuation": "trailing", "echo": False} if protocol == "openai" else {}
    return model(name, protocol, base, timeouts=timeouts, api_key=f"file:{key}", always_stream=always_stream, **known)


def _route(case: Case) -> Json:
    retries = {"retries": {"num_retries": 2, "backoff": "10ms"}}
    if case.column in UNGUIDED_COLUMNS:
        students = [case.name, "second"] if case.column.endswith("of two") else [case.name]
        return {"model": case.name, "mode": "student", "students": students, "baseline": "big"} | retries
    teacher, student = (case.name, "small") if case.column.startswith("teacher") else ("big", case.name)
    route = guided(case.name, teacher=teacher, student=student, tokens=GUIDANCE_TOKENS) | retries
    if case.column == "guided stream of two":
        route["students"] = [case.name, "second-guided"]
        del route["student"]
    return route


def _reply(case: Case, answer: httpx.Response) -> str:
    if answer.status_code != 200:
        error = answer.json()["error"]
        wait_s = answer.headers.get("Retry-After")
        wait = f", Retry-After {_about(wait_s)}" if wait_s else ""
        return f"{answer.status_code} {error['code'] or error['type']}{wait}"
    text, code = _streamed(answer) if case.streams else (answer.json()["choices"][0]["message"]["content"], None)
    unguided = case.column in UNGUIDED_COLUMNS or "x-gkt-unguided" in answer.headers
    shown_guidance = "" if unguided else GUIDANCE
    rest = text.removesuffix(TEXT)
    if (
        case.column == "teacher stream"
        and rest != text
        and rest not in {"", shown_guidance}
        and shown_guidance.startswith(rest)
    ):
        extent = "all of it, after shorter guidance"
    else:
        extent = _extent(text, shown_guidance, shown_guidance + TEXT)
    why = answer.headers.get("x-gkt-unguided")
    return f"200 {extent}" + (f", unguided: {why}" if why else "") + (f", then {code}" if code else "")


def _streamed(answer: httpx.Response) -> tuple[str, str | None]:
    """Return the text and the code of the error that ended it.

    A stream without error ends with [DONE] and one finish_reason.
    """
    *events, last = [line.removeprefix("data: ") for line in answer.text.splitlines() if line]
    done = last == "[DONE]"
    chunks = [orjson.loads(data) for data in (events if done else [*events, last])]
    choices = [choice for chunk in chunks for choice in chunk.get("choices", ())]
    text = "".join(choice["delta"].get("content") or "" for choice in choices)
    error = chunks[-1].get("error")
    assert done == (error is None), answer.text
    finish = [choice["finish_reason"] for choice in choices if choice["finish_reason"]]
    assert finish == (["stop"] if done else []), answer.text
    return text, None if error is None else error["code"]


def _extent(text: str, shown_guidance: str, whole: str) -> str:
    if text == whole:
        return "all of it"
    assert whole.startswith(text), text
    return "nothing" if not text else "the guidance" if text == shown_guidance else "a part"


def _about(wait_s: str) -> str:
    """Round a Retry-After that was computed from a date: the date is some seconds nearer when it is read."""
    return "30" if 20 <= int(wait_s) <= 30 else wait_s


def _receipt(case: Case, receipt: Json) -> str:
    share = receipt["teacher" if case.column.startswith("teacher") else "student"]
    if case.column.endswith("of two") and receipt["attempts"]:
        share = receipt["attempts"][-1].get("share")
    how = "free" if share is None else "estimated" if share.get("estimated") else "counted"
    return f"{receipt['status']}, {how}"


# The document.

HEAD = """# Failures

The result of a request when an engine fails, by fault. `python -m tests.failure_table > docs/reference/failures.md`
generates this page; a test runs every fault through a complete gateway with engines of both protocols.

Columns: the call that meets the fault. "Stream behind guidance" is a student's call after the caller received guidance.
Routes with a faulty teacher answer unguided. There is one student; with "two students", the second one has no fault.
"Two students, JSON" is a JSON caller of an engine with `always_stream`. `num_retries` is 2.

Each cell has the caller's reply; the receipt's status and how the faulty engine's tokens are counted; the number of
calls to that engine; and whether its [circuit breaker](../engines.md#when-an-engine-fails) is open afterwards, or
pauses the engine for the tenant. A dash means that this call cannot meet the fault.

| The engine ... | student, JSON | student, stream | two students, JSON | two students, stream \
| student, stream behind guidance | two students, stream behind guidance | teacher, JSON | teacher, stream |
|---|---|---|---|---|---|---|---|---|
"""


def document() -> str:
    rows = []
    for fault in FAULTS:
        who = "" if len(fault.protocols) > 1 else f" (protocol `{fault.protocols[0]}`)"
        rows.append("| " + " | ".join([fault.does + who, *map(_shown, CELLS[fault.name])]) + " |\n")
    return HEAD + "".join(rows)


def _shown(cell: Cell | None) -> str:
    if cell is None:
        return "-"
    calls = f"{cell.calls} call" + ("" if cell.calls == 1 else "s")
    return "<br>".join(filter(None, (cell.reply, cell.receipt, calls, cell.breaker)))


def as_rows(met: dict[str, dict[str, Cell]]) -> dict[str, Row]:
    """Return the outcomes in the form of tests/failure_cells.py. Both protocols must have the same outcome."""
    rows: dict[str, Row] = {}
    for fault in FAULTS:
        cells = []
        for column in COLUMNS:
            found = {cell for key, cell in met[fault.name].items() if key.split("/")[0] == column}
            assert len(found) <= 1, f"{fault.name}, {column}: {met[fault.name]}"
            cells.append(found.pop() if found else None)
        rows[fault.name] = tuple(cells)
    return rows


async def _observe() -> None:
    from gateway.local.redis import EmbeddedRedis

    async with EmbeddedRedis() as redis:
        with tempfile.TemporaryDirectory() as folder, world(Path(folder), redis.url) as running:
            met = await asyncio.to_thread(running.meet_all)
    print('"""The outcome of a call that meets a fault: a cell for each of `COLUMNS` in tests/failure_table.py."""\n')
    print("from __future__ import annotations\n\nfrom tests.faults import Cell, Row\n")
    print("CELLS: dict[str, Row] = {")
    for name, row in as_rows(met).items():
        shown = repr(row)
        for default in (", calls=1", ", breaker=''", "reply=", "receipt="):
            shown = shown.replace(default, "")
        print(f"    {name!r}: {shown},")
    print("}")


if __name__ == "__main__":
    if "--observe" in sys.argv:
        asyncio.run(_observe())
    else:
        sys.stdout.write(document())
