"""`gkt-gateway init` by options: the written files, derived values, and the message of each error."""

from __future__ import annotations

import asyncio
import hashlib
import re
import socket
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web
from ruamel.yaml import YAML

from gateway.cli import init as init_command
from gateway.cli.check import warnings_of
from gateway.cli.guided_answer import QUESTION
from gateway.cli.init_engines import ChosenEngine
from gateway.cli.init_files import Ports
from gateway.config.settings import OVERRIDES
from gateway.policy.book import check_all
from tests.cli.in_process import Done, run
from tests.cli.init_world import PRICES, modelled
from tests.fakes import FakeEngine, says, served

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in OVERRIDES:
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture(scope="module")
def tgi() -> Iterator[str]:
    with modelled(model="org/large", dialect="tgi") as url:
        yield url


@pytest.fixture(scope="module")
def vllm() -> Iterator[str]:
    """An engine that continues a message as vLLM does."""
    with modelled(model="org/small", continuation="vllm") as url:
        yield url


def init(out: Path, *arguments: str, question: bool = False, **environment: str) -> Done:
    more = () if question else ("--no-question",)
    return run("init", "--out", str(out), "--redis", "embedded", *more, *arguments, **environment)


def written(out: Path) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Return the two models by name, and the policy's route, of files that `check` accepts without a warning."""
    settings, book, issues = check_all(out / "config.yaml")
    assert issues == []
    assert settings is not None
    assert book is not None
    assert list(warnings_of(settings, book)) == []
    yaml = YAML(typ="safe")
    big, small = yaml.load(out / "config.yaml")["models"]
    (route,) = yaml.load(out / "policies" / "default.yaml")["routes"]
    return big, small, route


def flat(text: str) -> str:
    """Return the text of an error without the frame and the line breaks of the command line's messages."""
    return " ".join(re.sub(r"[│╭╮╰╯─]", " ", text).split())


def test_two_engines_become_a_configuration_that_check_accepts(tgi: str, vllm: str, tmp_path: Path) -> None:
    done = init(tmp_path / "new", "--teacher", tgi, "--student", vllm, *PRICES)
    assert done.returncode == 0, done.stderr
    big, small, route = written(tmp_path / "new")
    assert (big["protocol"], big["api_base"], big["price"]) == (
        *("tgi", tgi),
        {"input_per_1m": 0.90, "output_per_1m": 0.90},
    )
    assert (small["protocol"], small["api_base"], small["model"]) == ("openai", f"{vllm}/v1", "org/small")
    guidance = route.pop("guidance")
    assert route == {"model": "chat", "mode": "guided", "teacher": "big", "student": "small"}
    assert guidance == {"tokens": 40, "deadline": "auto"}
    assert "continuation vllm" in done.stdout
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()) == [
        *("new/admin.key", "new/config.yaml", "new/policies/default.yaml")
    ]


def test_tenant_route_length_and_cached_price_are_options(tgi: str, vllm: str, tmp_path: Path) -> None:
    names = ("--tenant", "acme", "--model-name", "org/chat-1", "--tokens", "24", "--student-price", "0,0")
    done = init(tmp_path, "--teacher", tgi, "--student", vllm, *names, "--teacher-price", "3,15,0.30")
    assert done.returncode == 0, done.stderr
    policy = YAML(typ="safe").load(tmp_path / "policies" / "acme.yaml")
    assert (policy["tenant"], policy["routes"][0]["model"]) == ("acme", "org/chat-1")
    assert policy["routes"][0]["guidance"]["tokens"] == 24
    big, small = YAML(typ="safe").load(tmp_path / "config.yaml")["models"]
    assert big["price"] == {"input_per_1m": 3, "output_per_1m": 15, "cached_input_per_1m": 0.30}
    assert small["price"] == {"free": True}
    settings, book, issues = check_all(tmp_path / "config.yaml")
    assert (settings is None, book is None, issues) == (False, False, [])


def test_a_question_is_guided_and_the_key_is_printed_once(tgi: str, tmp_path: Path) -> None:
    """The student continues no text, so its engine is up without a probe of its continuation."""
    with modelled(model="org/small", continuation="none") as student:
        done = init(tmp_path, "--teacher", tgi, "--student", student, *PRICES, question=True)
    assert done.returncode == 0, done.stderr
    _, small, route = written(tmp_path)
    assert (small["continuation"], route["guidance"]["placement"]) == ("none", "context")
    assert "does not continue a text: the guidance goes into its prompt (placement context)" in done.stdout
    assert "by the student, after a hint by the teacher that is not shown" in done.stdout
    assert "mode guided" in done.stdout
    assert "the teacher alone" in done.stdout
    assert len(re.findall(r"gk-[\w-]{43}", done.stdout)) == 1
    assert "gk-" not in done.stderr + "".join(path.read_text() for path in tmp_path.rglob("*.yaml"))


def test_the_list_price_is_used_where_the_model_has_one(tgi: str, tmp_path: Path) -> None:
    with modelled(model="gpt-4.1-mini") as url:
        done = init(tmp_path, "--teacher", tgi, "--student", f"{url}/v1", "--teacher-price", "1,1")
    assert done.returncode == 0, done.stderr
    _, small, _ = written(tmp_path)
    assert "price" not in small


def test_one_of_several_models_is_chosen_by_its_option(tgi: str, tmp_path: Path) -> None:
    with _listing("org/one", "org/two") as url:
        arguments = ("--teacher", tgi, "--student", url, *PRICES)
        done = init(tmp_path, *arguments)
        assert done.returncode == 2
        assert "--student-model: needed, since the student serves org/one, org/two" in flat(done.stderr)
        done = init(tmp_path, *arguments, "--student-model", "org/three")
        assert done.returncode == 1
        assert f"student {url}/v1 has no model org/three. Its models: org/one, org/two" in done.stderr
        assert not any(tmp_path.iterdir())
        done = init(tmp_path, *arguments, "--student-model", "org/two")
    assert done.returncode == 0, done.stderr
    assert written(tmp_path)[1]["model"] == "org/two"


def _listing(*models: str) -> Any:
    """Return a context of an engine that lists these models and continues each answer."""

    async def list_models(_: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": name} for name in models]})

    async def chat(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        probe = str(body["messages"][-1]["content"]).startswith("a b c")
        return await says(" o p q r" if probe else "One, two, three.")(request, body)

    app = web.Application()
    app.router.add_get("/v1/models", list_models)
    app.router.add_post("/v1/chat/completions", chat)
    return served(app)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--teacher and --student: needed, since standard input is not a terminal"),
        (("--teacher", "TGI"), "--student: needed, since standard input is not a terminal"),
        (("--teacher", "TGI", "--student", "VLLM"), "--teacher-price and --student-price: needed"),
        (
            ("--teacher", "TGI", "--student", "VLLM", "--student-price", "1,1"),
            "--teacher-price: needed, since standard input is not a terminal: USD per 1M tokens, like 0.90,0.90",
        ),
        (("--tenant", "../x"), "--tenant: must be 1 to 64 letters"),
        (("--model-name", "a b"), "--model-name: must be 1 to 128 letters"),
    ],
)
def test_without_a_terminal_a_missing_option_is_named(
    tgi: str, vllm: str, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    done = init(tmp_path, *({"TGI": tgi, "VLLM": vllm}.get(one, one) for one in arguments))
    assert done.returncode == 2
    assert message in flat(done.stderr)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("--teacher", "http://127.0.0.1:9"),
            "teacher http://127.0.0.1:9 is not reachable (connection refused): start",
        ),
        (("--teacher", "127.0.0.1:9/v1"), "teacher http://127.0.0.1:9/v1 is not reachable (connection refused)"),
        (("--teacher", "engine.invalid/v1"), "teacher http://engine.invalid/v1 is not reachable"),
        (("--teacher", "ftp://host"), "--teacher: must be an address like http://host:8080"),
        (("--teacher", "http://me:secret@host"), "--teacher: must not contain a user name or a password"),
        (("--teacher", "large"), "--teacher must be a URL like http://127.0.0.1:8000, or provider/model of LiteLLM"),
        (("--teacher", "nobody/large"), "--teacher: LiteLLM has no provider 'nobody'"),
        (("--teacher-key", "sk-secret"), "--teacher-key must be env:NAME, the name of an environment variable"),
        (("--teacher-key", "env:GKT_UNSET"), "--teacher-key: the environment variable GKT_UNSET is not set"),
        (("--teacher-price", "cheap"), "--teacher-price must be IN,OUT or IN,OUT,CACHED in USD per 1M tokens"),
        (("--teacher-price", "2000000,1"), "--teacher-price: must be between 0 and 1000000 USD"),
        (("--redis", "redis://:secret@127.0.0.1"), "--redis has a password: put the URL into an environment variable"),
        (("--redis", "redis://127.0.0.1/0?password=secret"), "--redis has a password: put the URL into"),
        (("--redis", "redis://127.0.0.1:9"), "--redis: Redis at 127.0.0.1:9 does not answer (ConnectionError)"),
        (("--redis", "127.0.0.1"), "--redis: must be embedded, or a URL that starts with redis://"),
    ],
)
def test_an_invalid_option_is_an_error_that_writes_nothing(
    tgi: str, vllm: str, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    done = init(tmp_path, "--teacher", tgi, "--student", vllm, *PRICES, *arguments)
    assert done.returncode == 1
    assert message in done.stderr
    assert "secret" not in done.stdout + done.stderr
    assert not any(tmp_path.iterdir())


def test_an_engine_that_requires_a_key_gets_it_from_the_environment(vllm: str, tmp_path: Path) -> None:
    @web.middleware
    async def keyed(request: web.Request, handler: Any) -> web.StreamResponse:
        if request.headers.get("Authorization") != "Bearer teacher-secret":
            raise web.HTTPUnauthorized(text="teacher-secret is wrong")
        return await handler(request)  # type: ignore[no-any-return]

    engine = FakeEngine(says("One two three four", "length"))
    app = web.Application(middlewares=[keyed])
    app.router.add_get("/v1/models", engine._models)
    app.router.add_post("/v1/chat/completions", engine._behave)
    with served(app) as url:
        arguments = ("--teacher", url, "--student", vllm, *PRICES)
        done = init(tmp_path, *arguments)
        assert f"teacher {url} requires a key (401): name its environment variable with --teacher-key" in done.stderr
        done = init(tmp_path, *arguments, "--teacher-key", "env:KEY", KEY="another")
        assert f"teacher {url} rejects the key in env:KEY (401): correct the variable" in done.stderr
        done = init(tmp_path, *arguments, "--teacher-key", "env:KEY", KEY="teacher-secret")
    assert done.returncode == 0, done.stderr
    config = (tmp_path / "config.yaml").read_text()
    assert "api_key: env:KEY" in config
    assert "teacher-secret" not in config + done.stdout + done.stderr


def test_a_server_of_another_kind_is_reported(vllm: str, tmp_path: Path) -> None:
    with served(web.Application()) as url:
        done = init(tmp_path, "--teacher", url, "--student", vllm, *PRICES)
    assert done.returncode == 1
    assert f"teacher {url} has neither TGI's /info nor OpenAI's /models (404): correct the URL" in done.stderr


def _reasoning(*, switchable: bool) -> FakeEngine:
    async def behave(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        off = body.get("chat_template_kwargs", {}).get("enable_thinking") is False
        return await says("One two three" if switchable and off else "<think> Well then", "length")(request, body)

    return FakeEngine(behave)


def test_the_reasoning_of_an_engine_is_switched_off_or_reported(tgi: str, vllm: str, tmp_path: Path) -> None:
    with _reasoning(switchable=True).running() as engine:
        done = init(tmp_path / "a", "--teacher", engine.url, "--student", vllm, *PRICES)
    assert done.returncode == 0, done.stderr
    assert written(tmp_path / "a")[0]["reasoning"] == "switchable"
    with _reasoning(switchable=False).running() as engine:
        done = init(tmp_path / "b", "--teacher", engine.url, "--student", vllm, *PRICES)
        assert done.returncode == 1
        assert f"teacher {engine.url}/v1 reasons before it answers" in done.stderr
        done = init(tmp_path / "c", "--teacher", tgi, "--student", engine.url, *PRICES)
    assert done.returncode == 0, done.stderr
    _, small, route = written(tmp_path / "c")
    assert (small["reasoning"], route["guidance"]["placement"]) == ("always", "context")


def test_a_teacher_that_accepts_only_temperature_1_gets_it(vllm: str, tmp_path: Path) -> None:
    async def behave(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if body.get("temperature") != 1:
            error = {"message": "Unsupported value: 'temperature' does not support 0.", "type": "invalid_request_error"}
            return web.json_response({"error": error}, status=400)
        return await says("One two three", "length")(request, body)

    with FakeEngine(behave).running() as engine:
        done = init(tmp_path, "--teacher", engine.url, "--student", vllm, *PRICES)
    assert done.returncode == 0, done.stderr
    assert written(tmp_path)[2]["guidance"]["temperature"] == 1


def test_an_engine_that_fails_its_probe_is_reported(vllm: str, tmp_path: Path) -> None:
    async def behave(_: web.Request, __: dict[str, Any]) -> web.StreamResponse:
        return web.json_response({"error": {"message": "out of memory"}}, status=500)

    with FakeEngine(behave).running() as engine:
        done = init(tmp_path, "--teacher", engine.url, "--student", vllm, *PRICES)
        assert f"teacher {engine.url}/v1 cannot be used: Engine 'teacher' answered 500: out of memory" in done.stderr
    assert done.returncode == 1
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("model", "variable"),
    [("openai/gpt-4.1", "OPENAI_API_KEY"), ("anthropic/claude-sonnet-4-5", "ANTHROPIC_API_KEY")],
)
@pytest.mark.parametrize("value", [None, " "], ids=["unset", "empty"])
def test_the_variable_of_a_providers_missing_key_is_named(
    vllm: str, tmp_path: Path, model: str, variable: str, value: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty variable counts as missing."""
    for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    done = init(tmp_path, "--teacher", model, "--student", vllm, *PRICES)
    assert done.returncode == 1
    assert f"--teacher: {model} requires a key, and {variable} is not set: export {variable}, or name" in done.stderr
    assert not any(tmp_path.iterdir())


def test_a_provider_that_fails_without_a_key_is_reported(vllm: str, tmp_path: Path) -> None:
    async def behave(_: web.Request, __: dict[str, Any]) -> web.StreamResponse:
        return web.json_response({"error": {"message": "no project"}}, status=400)

    with FakeEngine(behave).running() as engine:
        arguments = ("--teacher", "hosted_vllm/large", "--student", vllm, *PRICES)
        done = init(tmp_path, *arguments, HOSTED_VLLM_API_BASE=f"{engine.url}/v1")
    assert done.returncode == 1
    assert "If the provider requires a key, name its environment variable with --teacher-key env:NAME" in done.stderr
    assert "teacher hosted_vllm/large cannot be used: Engine 'teacher' answered 400: no project. If" in done.stderr


def test_a_question_that_fails_leaves_the_files_and_prints_the_key(tgi: str, tmp_path: Path) -> None:
    async def behave(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if QUESTION in str(body["messages"]):
            return web.json_response({"error": {"message": "out of memory"}}, status=500)
        return await says("One two three", "length")(request, body)

    with FakeEngine(behave).running() as engine:
        done = init(tmp_path, "--teacher", tgi, "--student", engine.url, *PRICES, question=True)
    assert done.returncode == 1
    assert "The files are written, but the question failed: The " in done.stderr
    (key,) = re.findall(r"gk-[\w-]{43}", done.stdout)
    assert hashlib.sha256(key.encode()).hexdigest() in (tmp_path / "policies" / "default.yaml").read_text()


@pytest.mark.parametrize("out", ["file", "file/folder"])
def test_a_folder_that_cannot_exist_is_reported_before_the_engines_are_called(out: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    done = init(tmp_path / out, "--teacher", "http://127.0.0.1:9", "--student", "http://127.0.0.1:9", *PRICES)
    assert done.returncode == 1
    assert f"--out: {tmp_path / 'file'} is not a folder" in done.stderr
    assert (tmp_path / "file").read_text() == "mine"


def test_the_next_command_quotes_the_folder(tgi: str, vllm: str, tmp_path: Path) -> None:
    done = init(tmp_path / "my gateway", "--teacher", tgi, "--student", vllm, *PRICES)
    assert f"\ncd '{tmp_path}/my gateway' && gkt-gateway serve\n" in done.stdout


def test_existing_files_are_replaced_only_with_force(tgi: str, vllm: str, tmp_path: Path) -> None:
    (tmp_path / "policies").mkdir()
    (tmp_path / "config.yaml").write_text("mine")
    arguments = ("--teacher", tgi, "--student", vllm, *PRICES)
    done = init(tmp_path, *arguments)
    assert done.returncode == 1
    assert "config.yaml exists: overwrite with --force, or choose another folder with --out" in done.stderr
    assert (tmp_path / "config.yaml").read_text() == "mine"
    done = init(tmp_path, *arguments, "--force")
    assert done.returncode == 0, done.stderr
    assert f"kept     {tmp_path}/config.yaml.bak: the replaced files" in done.stdout
    assert (tmp_path / "config.yaml.bak").read_text() == "mine"
    written(tmp_path)
    other = (tmp_path / "policies" / "default.yaml").rename(tmp_path / "policies" / "acme.yaml")
    done = init(tmp_path, *arguments, "--force")
    assert done.returncode == 1
    assert f"{other} exists, and may name models that the new config.yaml lacks" in done.stderr


def test_another_pair_of_ports_is_used_while_the_default_is_in_use() -> None:
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            other.bind(("127.0.0.1", Ports().server))
            other.listen()
        except OSError:
            pass  # another process has it, which is the case to test
        next_pair = Ports(Ports().server + 10, Ports().admin + 10)
        engine = ChosenEngine("teacher", "large", {"api_base": f"http://127.0.0.1:{next_pair.server}"})
        found = init_command._free_ports((engine,))
    assert found.server > next_pair.server
    assert found.admin == found.server + 1


def test_variables_that_override_the_file_are_named_and_ignored(tgi: str, vllm: str, tmp_path: Path) -> None:
    done = init(tmp_path, "--teacher", tgi, "--student", vllm, *PRICES, GKT_POLICIES="/nowhere")
    assert done.returncode == 0, done.stderr
    assert "In this shell, GKT_POLICIES would override config.yaml." in done.stdout


def test_a_hung_engine_is_reported(vllm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gateway.cli import init_engines

    async def hang(_: web.Request) -> web.Response:
        await asyncio.sleep(3600)
        raise AssertionError

    monkeypatch.setattr(init_engines, "_CALL_LIMITS", init_engines._CALL_LIMITS._replace(first_token_s=0.2))
    app = web.Application()
    app.router.add_get("/info", hang)
    with served(app) as url:
        done = init(tmp_path, "--teacher", url, "--student", vllm, *PRICES)
    assert done.returncode == 1
    assert f"teacher {url} accepts connections, but does not answer in time" in done.stderr
