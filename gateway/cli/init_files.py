"""Contents of the files of `init`: config.yaml and one policy. They are checked before they replace anything."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, NamedTuple

from gateway.cli import new_files
from gateway.cli.init_engines import NAMES, PROTOCOLS
from gateway.config.sections import AdminSettings, ServerSettings
from gateway.config.settings import OVERRIDES, check_settings, environment
from gateway.config.variables import escaped
from gateway.config.yaml_source import display_path
from gateway.errors import ConfigError, StartupError
from gateway.keys.token import digest_of
from gateway.migration.yaml_text import yaml_text
from gateway.policy.book import check_book

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from gateway.cli.init_engines import ChosenEngine, ProbedEngine
    from gateway.config.settings import Settings
    from gateway.config.yaml_messages import Loc
    from gateway.policy.book import PolicySet
    from gateway.protocol.body import Json

CONFIG = Path("config.yaml")
ADMIN_KEY = Path("admin.key")
KEY_ID = "first"
_POLICIES = Path("policies")
_CONFIG_HEAD = """\
Written by `gkt-gateway init`. `gkt-gateway docs configuration` lists all settings and their defaults.
Edits of models apply without a restart: `gkt-gateway docs operations#edit-configyaml`. `gkt-gateway check`
validates them.
"""
_POLICY_HEAD = """\
Written by `gkt-gateway init`. `gkt-gateway docs policy` lists all settings and their defaults.
Changes take effect at once in a running gateway.
"""


class Ports(NamedTuple):
    """The ports of the gateway: for callers, and for operators."""

    server: int = ServerSettings().port
    admin: int = AdminSettings().port


@dataclass(frozen=True, slots=True)
class NewGateway:
    """Contents of the files to write."""

    tenant: str
    route: str
    redis: str  # as in config.yaml: embedded, a URL or a reference
    ports: Ports
    tokens: int
    engines: tuple[tuple[ChosenEngine, ProbedEngine], tuple[ChosenEngine, ProbedEngine]]  # teacher, student
    key: str  # the API key; only its SHA-256 is written
    admin_key: str

    def files(self) -> dict[Path, str]:
        """Return the files by their path."""
        return {
            CONFIG: self._config(),
            policy_path(self.tenant): self._policy(),
            ADMIN_KEY: f"{self.admin_key}\n",
        }

    def _config(self) -> str:
        redis = {"url": escaped(self.redis)}
        comments: dict[Loc, str] = {}
        if self.redis == "embedded":
            comments["redis", "url"] = "for one replica; its data is lost at shutdown. Replicas share one: redis://..."
        models = [{name: escaped(value) for name, value in engine.keys.items()} for engine, _ in self.engines]
        admin: Json = {"key": f"file:{ADMIN_KEY}"}
        comments["admin", "key"] = "of the dashboard, the playground, and commands such as `gkt-gateway keys`"
        data: Json = {"admin": admin, "redis": redis, "models": models}
        if self.ports != Ports():
            data = {"server": {"port": self.ports.server}, **data, "admin": {"port": self.ports.admin, **admin}}
            comments["server", "port"] = f"{Ports().server} or {Ports().admin} was in use"
        for index, (engine, probed) in enumerate(self.engines):
            comments |= {("models", index, name): text for name, text in _comments(engine, probed)}
        return yaml_text(data, comments, _CONFIG_HEAD)

    def _policy(self) -> str:
        (_, teacher), (_, student) = self.engines
        guidance: Json = {"tokens": self.tokens, "deadline": "auto"}
        comments = {
            "tokens": "the teacher's part of an answer. More tokens: closer to its own answer, at a higher cost",
            "deadline": "longest wait for it: follows the teacher's measured times",
        }
        if student.placement != "prefix":
            guidance["placement"] = student.placement
            why = "reasons before it answers" if student.reasoning == "always" else "continues no text"
            comments["placement"] = f"{NAMES['student']} {why}: the guidance goes into its prompt"
        if teacher.temperature:
            guidance["temperature"] = int(teacher.temperature)
            comments["temperature"] = f"{NAMES['teacher']} accepts no other value"
        route = {"model": self.route, "mode": "guided", **NAMES, "guidance": guidance}
        located: dict[Loc, str] = {("routes", 0, "guidance", name): text for name, text in comments.items()}
        located["routes", 0, "model"] = "`model` of requests"
        located["routes", 0, "mode"] = "the teacher begins the answer, the student completes it"
        keys = [{"id": KEY_ID, "sha256": digest_of(self.key)}]
        return yaml_text({"tenant": self.tenant, "keys": keys, "routes": [route]}, located, _POLICY_HEAD)


def policy_path(tenant: str) -> Path:
    """Return the path of a tenant's policy, relative to the folder of config.yaml."""
    return _POLICIES / f"{tenant}.yaml"


def _comments(engine: ChosenEngine, probed: ProbedEngine) -> Iterator[tuple[str, str]]:
    """Yield the comments of a model's keys."""
    if engine.keys["protocol"] == "tgi":
        yield "protocol", f"{PROTOCOLS['tgi']}: {engine.shown}"
        yield "model", "an adapter"
    elif "price" not in engine.keys:
        yield "model", "with LiteLLM's list price. Another one: price: {input_per_1m: 0.90, output_per_1m: 0.90}"
    if engine.role == "teacher":
        yield "continuation", "auto, for a student, makes a paid call at each start"
    else:
        yield "continuation", "continues no text" if probed.continuation is None else "as probed"


def checked(files: Mapping[Path, str], folder: Path) -> tuple[Settings, PolicySet]:
    """Return the settings and the policies of the files for a gateway in `folder`. Nothing is written there.

    Environment variables that override config.yaml are ignored. Raises ConfigError with every issue.
    """
    environ = {name: value for name, value in environment().items() if name not in OVERRIDES}
    with TemporaryDirectory(prefix="gkt-init-") as staging:
        for path, text in files.items():
            target = Path(staging, path)
            target.parent.mkdir(exist_ok=True)
            target.write_text(text, encoding="utf-8")
        settings, _, issues = check_settings(Path(staging, CONFIG), environ)
        if settings is None:
            raise ConfigError(issues)
        protocols: dict[str, str] = {model.name: model.protocol for model in settings.models}
        book, issues = check_book(settings.policies, list(protocols), protocols)
        if book is None:
            raise ConfigError(issues)
    return settings.model_copy(update={"data": folder / "data", "policies": folder / _POLICIES}), book


def overriding() -> list[str]:
    """Return the environment variables that override config.yaml in this shell."""
    environ = environment()
    return [name for name in OVERRIDES if environ.get(name, "").strip()]


def require_new(folder: Path, tenant: str, *, force: bool) -> None:
    """Raise StartupError if the files cannot be written or would replace a file, or if other policies would not fit."""
    new_files.require_writable(folder)
    new_files.require_new((folder / path for path in (CONFIG, policy_path(tenant), ADMIN_KEY)), force=force)
    policies = folder / _POLICIES
    if policies.is_dir() and (others := sorted({*policies.glob("*.yaml")} - {folder / policy_path(tenant)})):
        raise StartupError(
            f"{display_path(others[0])} exists, and may name models that the new config.yaml lacks: "
            "choose another folder with --out"
        )
