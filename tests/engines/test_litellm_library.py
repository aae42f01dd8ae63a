from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from ruamel.yaml import YAML

from gateway.engines import litellm_library
from gateway.errors import StartupError
from tests.engines.fake_server import replying, serving
from tests.engines.litellm_servers import message
from tests.gateway_process import sha256

if TYPE_CHECKING:
    from pathlib import Path

# The script of a separate process, since imports and connection attempts concern the whole process.
WATCHED = """
import asyncio, json, os, socket, sys

tried = set()

def watch(owner, name):
    real = getattr(owner, name)
    def watched(*arguments, **more):
        found = [one for one in arguments if not isinstance(one, socket.socket)][:2]
        address = found[0] if isinstance(found[0], tuple) else tuple(found)
        tried.add(":".join(str(part) for part in address[:2]))
        return real(*arguments, **more)
    setattr(owner, name, watched)

class Socket(socket.socket):
    def connect(self, address):
        tried.add(":".join(map(str, address[:2])) if isinstance(address, tuple) else "unix")
        return super().connect(address)

    def connect_ex(self, address):
        tried.add(":".join(map(str, address[:2])) if isinstance(address, tuple) else "unix")
        return super().connect_ex(address)

socket.socket = Socket
watch(socket, "getaddrinfo")
"""

ENGINE = """
from gateway.engines.http import EngineDeadlines
from gateway.engines.litellm import LiteLLMEngine
from gateway.engines.litellm_library import load

async def main(url):
    before = "litellm" in sys.modules
    held = 0.0
    async def tick():
        nonlocal held
        loop = asyncio.get_running_loop()
        while True:
            then = loop.time()
            await asyncio.sleep(0.01)
            held = max(held, loop.time() - then)
    ticking = asyncio.create_task(tick())
    library = await load(["anthropic/claude-sonnet-4-5"])
    ticking.cancel()
    engine = LiteLLMEngine(
        "e", "anthropic/claude-sonnet-4-5", library, deadlines=EngineDeadlines(), api_base=url, api_key="k"
    )
    await engine.probe()
    await engine.complete({"messages": [{"role": "user", "content": "hi"}]})
    await engine.close()
    import litellm
    names = [name for name in dir(litellm) if name.rstrip("s").endswith("callback") and "known" not in name]
    handlers = [name for name in names if getattr(litellm, name)]
    print(json.dumps({
        "before": before, "after": "litellm" in sys.modules, "held_s": held, "tried": sorted(tried),
        "tiktoken": os.environ.get("TIKTOKEN_CACHE_DIR"), "handlers": handlers,
    }))

asyncio.run(main(sys.argv[1]))
"""

CANCELED = """
import asyncio, json, sys
from concurrent.futures import ThreadPoolExecutor, wait
from gateway.engines.http import EngineDeadlines
from gateway.engines.litellm import LiteLLMEngine
from gateway.engines.litellm_library import load

class Threads(ThreadPoolExecutor):
    def submit(self, *work, **more):
        result = super().submit(*work, **more)
        wait([result])
        asyncio.get_running_loop().call_soon(call.cancel)
        return result

async def main(url):
    global call
    model = "anthropic/claude-sonnet-4-5"
    engine = LiteLLMEngine("e", model, await load([model]), deadlines=EngineDeadlines(), api_base=url, api_key="k")
    asyncio.get_running_loop().set_default_executor(Threads())
    call = asyncio.create_task(engine.complete({"messages": [{"role": "user", "content": "hi"}]}))
    await asyncio.wait([call])
    await engine.close()
    print(json.dumps({"canceled": call.cancelled()}))

asyncio.run(main(sys.argv[1]))
"""

GATEWAY = """
from pathlib import Path
from gateway.app import gateway
from gateway.policy.book import check_all

async def main(config, redis_url):
    settings, book, mistakes = check_all(Path(config))
    async with gateway(settings, book, redis_url):
        await asyncio.sleep(0.2)
    imported = [name for name in ("litellm", "httpx") if name in sys.modules]
    print(json.dumps({"imported": imported, "mistakes": list(map(str, mistakes))}))

asyncio.run(main(*sys.argv[1:]))
"""

OFFLINE = ("LITELLM", "TIKTOKEN")


def said_by(script: str, *arguments: str, **environ: str) -> dict[str, Any]:
    """Return the output of the script, in a process without environment variables of LiteLLM."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(OFFLINE)}
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        capture_output=True, text=True, timeout=50, check=False, env={**plain, **environ},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    output: dict[str, Any] = json.loads(done.stdout)  # no other output
    return output


@pytest.mark.long
async def test_litellm_calls_only_the_engine(tmp_path: Path) -> None:
    """No requests for prices, telemetry or model details. The cache folder of tiktoken does not change."""
    async with serving({"/v1/messages": replying(message(" o p"))}) as fake:
        output = await asyncio.to_thread(
            said_by, WATCHED + ENGINE, fake.url, TIKTOKEN_CACHE_DIR=str(tmp_path), ANTHROPIC_API_KEY="not-this"
        )
        assert [request.headers["x-api-key"] for request in fake.requests] == ["k", "k"]
    assert (output["before"], output["after"]) == (False, True)
    assert output["tried"] == [fake.url.removeprefix("http://")]
    assert output["tiktoken"] == str(tmp_path)
    assert output["handlers"] == []
    assert output["held_s"] < 1.5  # the import takes longer but does not hold the lock


@pytest.mark.long
async def test_a_call_that_is_canceled_while_litellm_prepares_it_prints_nothing() -> None:
    async with serving({"/v1/messages": replying(message(" o p"))}) as fake:
        output = await asyncio.to_thread(said_by, CANCELED, fake.url)
    assert (output, fake.requests) == ({"canceled": True}, [])


async def test_a_failed_import_of_litellm_is_reported_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(name: str) -> None:
        raise ImportError(f"No module named '{name}'")

    litellm_library._load.cache_clear()
    monkeypatch.setattr(litellm_library.importlib, "import_module", fails)
    try:
        with pytest.raises(StartupError, match="LiteLLM cannot be imported") as caught:
            await litellm_library.load()
        assert "\n" not in caught.value.message
    finally:
        litellm_library._load.cache_clear()


BUILDING = """
import asyncio, json, sys, threading

threads = {}

class Noting:
    def find_spec(self, name, *_):
        threads.setdefault(name, threading.current_thread() is threading.main_thread())
        if name == "litellm":
            raise ImportError(name)

from gateway.config.models import ModelSettings
from gateway.engines.build import build
from gateway.errors import StartupError

price = {"input_per_1m": 0, "output_per_1m": 0}
model = ModelSettings.model_validate({"name": "big", "model": "anthropic/x", "protocol": "litellm", "price": price})
sys.meta_path.insert(0, Noting())
try:
    asyncio.run(build([model], None, None))
except StartupError:
    print(json.dumps({name: on_loop for name, on_loop in threads.items() if name.startswith("gateway.engines.")}))
"""


def test_the_modules_for_litellm_are_not_imported_on_the_event_loop() -> None:
    """An edit of config.yaml may add the first such engine while requests run."""
    output = said_by(BUILDING)
    assert output.keys() >= {"gateway.engines.litellm", "gateway.engines.litellm_library"}
    assert not any(output.values())


def test_a_gateway_without_litellm_engines_does_not_import_litellm(redis_url: str, tmp_path: Path) -> None:
    """The import takes seconds and 190 MB. Prices, tokenizers and provider names are read without it."""
    yaml = YAML()
    (tmp_path / "policies").mkdir()
    price = {"input_per_1m": 1, "output_per_1m": 1}
    models = [
        {"name": "big", "protocol": "tgi", "api_base": "http://127.0.0.1:1", "price": price},
        {"name": "small", "protocol": "openai", "api_base": "http://127.0.0.1:1/v1", "model": "gpt-4o-mini"},
    ]  # fmt: skip
    yaml.dump({"admin": {"port": 0}, "models": models}, tmp_path / "config.yaml")
    route = {"model": "chat", "mode": "guided", "teacher": "big", "student": "small", "guidance": {"tokens": 5}}
    key = {"id": "only", "sha256": sha256("k")}
    yaml.dump({"tenant": "acme", "keys": [key], "routes": [route]}, tmp_path / "policies" / "acme.yaml")
    script = "import asyncio, json, sys\n" + GATEWAY
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "config.yaml"), redis_url],
        capture_output=True, text=True, timeout=50, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {"imported": [], "mistakes": []}
