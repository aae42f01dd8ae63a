"""Move the modules of `gateway/` and their tests to the layout of packages, and rewrite every reference to them.

    python scripts/codemods/layout.py

Run it once on a clean checkout. It uses `git mv`, so history follows the files.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

# Modules and packages below gateway/, from old to new.
MODULES = {
    "completion": "pipeline.completion",
    "admission": "pipeline.admission",
    "guide": "pipeline.teacher",
    "opening": "pipeline.guidance_request",
    "sounding": "pipeline.confidence_probe",
    "finishing": "pipeline.student",
    "placing": "pipeline.student_request",
    "attempts": "pipeline.retries",
    "relay": "pipeline.stream",
    "embedding": "pipeline.embeddings",
    "handover": "pipeline.edge_guidance",
    "edge_accounts": "pipeline.edge_reports",
    "shadowing": "pipeline.shadow",
    "guarding": "pipeline.quality_sampler",
    "generation": "pipeline.generation",
    "prefill_echo": "pipeline.prefill_echo",
    "disconnects": "pipeline.disconnects",
    "slots": "pipeline.slots",
    "deadlines": "pipeline.deadlines",
    "web": "api",
    "loop_scheduler": "api.loop_scheduler",
    "startup": "api.readiness",
    "serving": "server.listeners",
    "beside": "server.in_process",
    "workers": "server",
    "messages": "protocol.messages",
    "protocol.elsewhere": "protocol.forbidden_fields",
    "engine_kinds": "capabilities.kinds",
    "continuation": "capabilities.continuation",
    "reasoning": "capabilities.reasoning",
    "providers": "capabilities.providers",
    "keyring": "keys",
    "audit": "keys.audit",
    "ledger": "accounting",
    "config": "config.settings",
    "sections": "config.sections",
    "model_settings": "config.models",
    "allowances": "config.limits",
    "units": "config.scalars",
    "yaml_source": "config.yaml_source",
    "yaml_words": "config.yaml_messages",
    "usage_address": "config.database_url",
    "redis_address": "config.redis_url",
    "redis_client": "redis.client",
    "redis_connection": "redis.connection",
    "redis_script": "redis.script",
    "redis_keys": "redis.keys",
    "metrics": "telemetry.metrics",
    "metric_files": "telemetry.metric_files",
    "series": "telemetry.series",
    "vitals": "telemetry.process_metrics",
    "logs": "telemetry.logs",
    "tracing": "telemetry.tracing",
    "trace_export": "telemetry.trace_export",
    "genai_names": "telemetry.semconv",
    "tasks": "runtime.tasks",
    "watchdog": "runtime.timeouts",
    "open_files": "runtime.open_files",
    "addresses": "runtime.addresses",
    "loop_deadline": "runtime.loop_deadline",
    "fair_share": "runtime.fair_share",
    "record": "runtime.record",
    "local.ending": "runtime.child_processes",
    "local.llama": "runtime.llama_cpp",
    "policy.json_schema": "reference.json_schema",
    "policy.reference": "reference.markdown",
}

PACKAGES = {
    "pipeline": "The path of one request, from validated input to its receipt. Start reading at `completion.py`.",
    "server": "Processes, ports and graceful shutdown.",
    "capabilities": "Tables of the features that each kind of engine supports.",
    "config": "config.yaml, the environment, and YAML with line numbers.",
    "redis": "Redis connections, scripts and the names of keys.",
    "telemetry": "Metrics, logs and traces.",
    "runtime": "Helpers for asyncio and the process.",
    "reference": "JSON schemas and the reference pages that are generated from them.",
}
"""Packages that are new, with their docstrings."""

# `gateway.protocol` exports nothing itself: gkt-edge ships the package without msgspec and orjson, which most of its
# modules import.
PROTOCOL = {
    "body": "MAX_CHOICES MAX_TOKENS CallerRequest Json too_deep",
    "chat": "ChatRequest parse_chat",
    "embeddings": "EmbeddingsRequest parse_embeddings",
    "reply": "ReplyHead TextReplyHead passed_on usage_body",
    "structure": "MAX_DEPTH",
    "text": "TextRequest parse_text_completion",
    "requests": "AnyRequest CompletionRequest",
}

# Tests of one module follow it. Tests of whole gateways, which no module owns, go to tests/system.
TEST_PACKAGES = {
    "web": "api",
    "workers": "server",
    "keyring": "keys",
    "ledger": "accounting",
    "deadlines": "pipeline/deadlines",
}
SYSTEM = "system"
NO_TESTS_OF_MODULES = {"test_baseline", "test_embedding"}  # of whole gateways, though modules have these names
DOC_TESTS = {"test_docs", "test_docs_commands", "test_docs_links", "test_security_page", "test_api_document"}

_RUN_BY_PREVIOUS_CODE = {"tests/usage/previous_janitor.py", "tests/usage/make_installation.py"}
_TEXT = {
    "",
    ".css",
    ".html",
    ".in",
    ".js",
    ".json",
    ".lua",
    ".md",
    ".py",
    ".service",
    ".sh",
    ".toml",
    ".txt",
    ".yaml",
    ".yml",
}


def main() -> None:
    moves = dict(_moves())
    for package, purpose in PACKAGES.items():
        init = Path("gateway", package, "__init__.py")
        if f"gateway/{package}" not in moves.values():
            init.parent.mkdir(exist_ok=True)
            init.write_text(f'"""{purpose}"""\n')
    for old, new in moves.items():
        Path(new).parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["git", "mv", old, new], check=True)
    init = Path("gateway/protocol/__init__.py")
    init.write_text(init.read_text("utf-8").partition("\nfrom gateway")[0], "utf-8")
    Path("gateway/protocol/requests.py").write_text(_REQUESTS)
    subprocess.run(["git", "add", "-A", "gateway"], check=True)
    rewrite = Rewrite(moves)
    deeper = {new for old, new in moves.items() if old.count("/") == 1 and old.startswith("tests/test_")}
    for name in subprocess.run(["git", "ls-files"], check=True, capture_output=True, text=True).stdout.splitlines():
        path = Path(name)
        skipped = name.startswith("scripts/codemods/") or name in _RUN_BY_PREVIOUS_CODE
        if path.suffix in _TEXT and path.is_file() and not skipped:
            text = path.read_text("utf-8")
            changed = rewrite.python(text) if path.suffix == ".py" else rewrite.paths(text)
            if name in deeper:
                changed = changed.replace("Path(__file__).parents[1]", "Path(__file__).parents[2]")
            if changed != text:
                path.write_text(changed, "utf-8")


def _moves():
    """Yield paths before and after."""
    both = [(Path("gateway", *old.split(".")), Path("gateway", *new.split("."))) for old, new in MODULES.items()]
    yield from ((str(old), str(new)) for old, new in both if old.is_dir())
    yield from ((f"{old}.py", f"{new}.py") for old, new in both if not old.is_dir())
    for old, new in TEST_PACKAGES.items():
        yield f"tests/{old}", f"tests/{new}"
    for test in sorted(Path("tests").glob("test_*.py")):
        if (place := _place_of_test(test.stem)) != str(test):
            yield str(test), place


def _place_of_test(stem: str) -> str:
    module = stem.removeprefix("test_")
    if stem in DOC_TESTS:
        return f"tests/docs/{stem}.py"
    if module in MODULES and stem not in NO_TESTS_OF_MODULES:
        package, name = MODULES[module].rsplit(".", 1)
        return f"tests/{package.replace('.', '/')}/test_{name}.py"
    if module in {"errors", "pricing", "wiring"}:
        return f"tests/{stem}.py"
    return f"tests/{SYSTEM}/{stem}.py"


_REQUESTS = '''"""Unions of the requests that callers may send."""

from __future__ import annotations

from typing import TypeAlias

from gateway.protocol.chat import ChatRequest
from gateway.protocol.embeddings import EmbeddingsRequest
from gateway.protocol.text import TextRequest

CompletionRequest: TypeAlias = ChatRequest | TextRequest
"""A request that the completion path answers."""

AnyRequest: TypeAlias = CompletionRequest | EmbeddingsRequest
"""A request that a route may take."""
'''


class Rewrite:
    """Rewrites dotted names of modules and paths of files in text."""

    def __init__(self, moves: dict[str, str]) -> None:
        dotted = {f"gateway.{old}": f"gateway.{new}" for old, new in MODULES.items()}
        dotted |= {f"tests.{old}": f"tests.{new.replace('/', '.')}" for old, new in TEST_PACKAGES.items()}
        for old, new in moves.items():
            if old.startswith("tests/test_"):
                dotted[old[:-3].replace("/", ".")] = new[:-3].replace("/", ".")
        self._dotted = _any_of(dotted, r"(?<![\w.])", r"(?![\w-])")
        self._names = dotted
        paths = {old: new for old, new in moves.items() if Path(old).suffix == ".py"}
        paths |= {f"{old}/": f"{new}/" for old, new in _folders()}
        self._path = _any_of(paths, r"(?<!\w)(?<!\w/)", "")
        self._paths = paths

    def python(self, text: str) -> str:
        text = _FROM_PACKAGE.sub(_from_package, text)
        return _FROM_PROTOCOL.sub(_from_protocol, self.paths(text).replace(_DONE, "gateway."))

    def paths(self, text: str) -> str:
        text = self._path.sub(lambda found: self._paths[found[0]], text)
        return self._dotted.sub(lambda found: self._names[found[0]], text)


_FROM_PACKAGE = re.compile(r"^( *)from gateway((?:\.\w+)*) import (\([^)]*\)|[^\n(]+)$", re.MULTILINE)
_DONE = "gateway@"  # stands for `gateway.` in a name that is new already


def _from_package(found: re.Match[str]) -> str:
    """Rewrite `from gateway.PACKAGE import MODULE` where the module moved to another package."""
    package, names = found[2].removeprefix("."), [one.strip() for one in found[3].strip("()").split(",") if one.strip()]
    moved = [one for one in names if "." in MODULES.get(f"{package}.{one.split()[0]}".lstrip("."), "")]
    if not moved:
        return found[0]
    lines = []
    for one in moved:
        old, _, alias = one.partition(" as ")
        where, new = MODULES[f"{package}.{old}".lstrip(".")].rsplit(".", 1)
        name = alias or old
        lines.append(f"{found[1]}from {_DONE}{where} import {new}" + (f" as {name}" if name != new else ""))
    if rest := [one for one in names if one not in moved]:
        lines.append(f"{found[1]}from gateway{found[2]} import {', '.join(rest)}")
    return "\n".join(lines)


_FROM_PROTOCOL = re.compile(r"^( *)from gateway\.protocol import (\([^)]*\)|[^\n(]+)$", re.MULTILINE)


def _from_protocol(found: re.Match[str]) -> str:
    names = [one.strip() for one in found[2].strip("()").split(",") if one.strip()]
    module_of = {name: module for module, held in PROTOCOL.items() for name in held.split()}
    return "\n".join(
        f"{found[1]}from gateway.protocol.{module_of[one.split()[0]]} import {one}"
        if one.split()[0] in module_of
        else f"{found[1]}from gateway.protocol import {one}"
        for one in names
    )


def _folders():
    for old in ("web", "workers", "keyring", "ledger", "deadlines"):
        yield f"gateway/{old}", f"gateway/{MODULES[old]}".replace(".", "/")
    yield from ((f"tests/{old}", f"tests/{new}") for old, new in TEST_PACKAGES.items())


def _any_of(names, before: str, after: str) -> re.Pattern[str]:
    longest_first = sorted(names, key=len, reverse=True)
    return re.compile(before + "(?:" + "|".join(map(re.escape, longest_first)) + ")" + after)


if __name__ == "__main__":
    main()
