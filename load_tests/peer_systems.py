"""Start the other gateways of compare.py, each from an environment of its own (installs.py)."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Protocol

from load_tests.children import free_ports
from load_tests.installs import PEERS
from load_tests.systems import System, targets_of, wait_for_answers
from load_tests.wrk import Kind, Target

if TYPE_CHECKING:
    from pathlib import Path

    from load_tests.systems import Site

LITELLM, PORTKEY, SWITCHYARD, VLLM_ROUTER = "LiteLLM", "Portkey", "Switchyard", "vLLM router"
# By folder in peers/.
PEER_NAMES = {"litellm": LITELLM, "portkey": PORTKEY, "switchyard": SWITCHYARD, "vllm_router": VLLM_ROUTER}


class Starter(Protocol):
    """Start a peer from its environment. Raises NotStarted."""

    def __call__(self, site: Site, home: Path) -> System: ...


def start_litellm(site: Site, home: Path) -> System:
    (port,) = free_ports(1)
    child = site.start(
        LITELLM, home / "bin/litellm", "--config", site.fill("litellm/config.yaml"), "--host", "127.0.0.1",
        "--port", str(port), "--num_workers", "1", "--log_config", site.fill("litellm/logs.json"),
        env={
            "LITELLM_OFFLINE_MODE": "true", "LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_TELEMETRY": "False",
            "LITELLM_LOG": "ERROR", "LITELLM_MODE": "PRODUCTION", "NO_DOCS": "True", "DISABLE_ADMIN_UI": "True",
        },
    )  # fmt: skip
    at, key = f"http://127.0.0.1:{port}", {"Authorization": "Bearer sk-bench"}
    system = System(
        LITELLM,
        f"{_version('litellm', 'litellm')} proxy: a master key, no database; 1 worker",
        targets_of(at, at, "bench-json", "bench-stream", key),
        (child,),
    )
    wait_for_answers(system, child)
    return system


def start_portkey(site: Site, home: Path) -> System:
    (port,) = free_ports(1)
    child = site.start(
        PORTKEY, "node", "--require", PEERS / "portkey/loopback.cjs",
        home / "node_modules/@portkey-ai/gateway/build/start-server.js", f"--port={port}", "--headless",
        env={"NODE_ENV": "production"},
    )  # fmt: skip
    at = f"http://127.0.0.1:{port}"
    targets: dict[Kind, Target] = {
        kind: Target(
            f"{at}/v1/chat/completions",
            "static",
            {
                "Authorization": "Bearer none",
                "x-portkey-provider": "openai",
                "x-portkey-custom-host": f"{site.base(kind)}/v1",
            },
        )
        for kind in ("json", "stream")
    }
    system = System(
        PORTKEY, f"{_version('portkey', '@portkey-ai/gateway')} gateway: no keys; 1 Node.js process", targets, (child,)
    )
    wait_for_answers(system, child)
    return system


def start_switchyard(site: Site, home: Path) -> System:
    (port,) = free_ports(1)
    child = site.start(
        SWITCHYARD, home / "bin/python", PEERS / "switchyard/serve.py", site.fill("switchyard/routes.toml"), str(port),
        env={"RUST_LOG": "warn"},
    )  # fmt: skip
    at = f"http://127.0.0.1:{port}"
    system = System(
        SWITCHYARD, f"{_version('switchyard', 'nemo-switchyard')}, no keys; 1 Rust process on all cores",
        targets_of(at, at, "bench-json", "bench-stream"), (child,),
    )  # fmt: skip
    wait_for_answers(system, child)
    return system


def start_vllm_router(site: Site, home: Path) -> System:
    """Start two routers, one per upstream, since a router chooses by load and not by model. One works at a time."""
    children, bases = [], []
    for kind in ("json", "stream"):
        port, metrics = free_ports(2)
        children.append(
            site.start(
                f"{VLLM_ROUTER} {kind}", home / "bin/vllm-router", "--host", "127.0.0.1", "--port", str(port),
                "--worker-urls", site.base(kind), "--policy", "round_robin", "--prometheus-port", str(metrics),
                "--log-level", "warning", "--worker-startup-check-interval", "1",
            )
        )  # fmt: skip
        bases.append(f"http://127.0.0.1:{port}")
    system = System(
        VLLM_ROUTER,
        f"{_version('vllm_router', 'vllm-router')}, no keys; 1 Rust process on all cores",
        targets_of(bases[0], bases[1], "static"),
        tuple(children),
    )
    for child in children:
        wait_for_answers(system, child)
    return system


STARTERS: dict[str, Starter] = {
    "litellm": start_litellm,
    "portkey": start_portkey,
    "switchyard": start_switchyard,
    "vllm_router": start_vllm_router,
}


def _version(peer: str, package: str) -> str:
    """Return the version in the peer's pins."""
    lock = PEERS / peer / "package-lock.json"
    if lock.exists():
        return str(json.loads(lock.read_text())["packages"][f"node_modules/{package}"]["version"])
    found = re.search(
        rf"^{re.escape(package)}==([^\s;]+)", (PEERS / peer / "requirements.lock").read_text(), re.MULTILINE
    )
    assert found is not None, f"the pins of {peer} do not name {package}"
    return found[1]
