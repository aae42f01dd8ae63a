"""All tenants' policies, loaded and cross-checked; and whose a key is."""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import sha256
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from gateway.config.settings import check_settings
from gateway.config.yaml_messages import nearest
from gateway.config.yaml_source import YamlSource, in_file_order, shown
from gateway.errors import ConfigError, ConfigIssue
from gateway.policy.conditions import RouteCondition
from gateway.policy.pages import PolicyFileCache
from gateway.policy.projections import PROJECTIONS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from gateway.config.settings import Settings
    from gateway.policy.projections import Projection
    from gateway.policy.schema import KeyEntry, TenantPolicy


class Caller(NamedTuple):
    """Who is calling: the tenant's policy, and which of its keys was used."""

    policy: TenantPolicy
    key: KeyEntry

    @property
    def key_id(self) -> str:
        """The key's name in logs and receipts."""
        return self.key.id


@dataclass(frozen=True, slots=True)
class PolicySet:
    """Every policy, and the projections that they may name. Immutable: a reload makes a new book."""

    policies: tuple[TenantPolicy, ...]
    projections: Mapping[str, Projection] = field(repr=False)
    _callers: Mapping[str, Caller] = field(repr=False)
    _of_tenant: Mapping[str, TenantPolicy] = field(repr=False)
    _only_embed: frozenset[str] = field(repr=False)

    @classmethod
    def of(cls, policies: Iterable[TenantPolicy], projections: Mapping[str, Projection] = PROJECTIONS) -> PolicySet:
        """A book of policies that are known to agree with each other. First match wins."""
        policies = tuple(policies)
        callers: dict[str, Caller] = {}
        modes: dict[str, set[str]] = {}
        for policy in policies:
            for key in policy.keys:
                callers.setdefault(key.sha256, Caller(policy, key))
            for route in policy.routes:
                for name in route.engines:
                    modes.setdefault(name, set()).add(route.mode)
        only_embed = frozenset(name for name, found in modes.items() if found == {"embeddings"})
        return cls(policies, projections, callers, {policy.tenant: policy for policy in policies}, only_embed)

    def tenant_of_key(self, token: str) -> Caller | None:
        """Whose key this is, of those in the files; None if nobody's."""
        return self.caller_of(sha256(token.encode("utf-8", "surrogatepass")).hexdigest())

    def caller_of(self, digest: str) -> Caller | None:
        """Whose key has this SHA-256, of those in the files; None if nobody's."""
        return self._callers.get(digest)

    def policy_of(self, tenant: str) -> TenantPolicy | None:
        """The policy of a tenant; None if there is no such tenant."""
        return self._of_tenant.get(tenant)

    def teachers(self) -> set[str]:
        """The configured models that some route asks for guidance, if only in a shadow or where a caller wants it."""
        return {
            route.teacher
            for policy in self.policies
            for route in policy.routes
            if policy.most_guidance_tokens(route) and route.teacher is not None
        }

    def only_embeds(self, name: str) -> bool:
        """Whether a configured model is asked for embeddings and for nothing else."""
        return name in self._only_embed


def load_all(config_path: Path, pages: PolicyFileCache | None = None) -> tuple[Settings, PolicySet]:
    """config.yaml and its policies. ConfigError with every mistake of both. `pages`: see `check_book`."""
    settings, book, mistakes = check_all(config_path, pages)
    if settings is None or book is None:
        raise ConfigError(mistakes)
    return settings, book


def check_all(
    config_path: Path, pages: PolicyFileCache | None = None
) -> tuple[Settings | None, PolicySet | None, list[ConfigIssue]]:
    """config.yaml and its policies, with the mistakes of both at once. Either is None when it has one."""
    settings, source, mistakes = check_settings(config_path)
    folder = _folder(settings, source, config_path)
    if folder is None:
        return settings, None, mistakes
    known = list(settings.by_name) if settings else _names(source)
    book, more = check_book(folder, known, dict(_protocols(source)), pages)
    return settings, book, [*mistakes, *more]


def check_book(
    folder: Path,
    known_models: list[str] | None,
    protocols: Mapping[str, str] = MappingProxyType({}),
    pages: PolicyFileCache | None = None,
) -> tuple[PolicySet | None, list[ConfigIssue]]:
    """Every *.yaml in `folder`, one tenant each, and the projections and exemplars in the folders below it.

    Args:
        known_models: the names of config.yaml. None: it does not tell, so do not ask.
        protocols: of the models of config.yaml, by name: only `openai` has a route for embeddings.
        pages: what remembers the files that were read before, and will those that are read now.
    """
    pages = pages if pages is not None else PolicyFileCache()
    try:
        files = sorted(file for file in folder.iterdir() if not file.name.startswith("."))
    except OSError as error:
        why = (error.strerror or "error").lower()
        return None, [ConfigIssue(shown(folder), 0, 0, "", f"the policies folder cannot be read: {why}")]
    mistakes = [
        ConfigIssue(shown(file), 0, 0, "", "not read: rename it to end in .yaml")
        for file in files
        if file.suffix == ".yml"
    ]
    library, book_so_far = pages.library, _Together()
    mistakes += library.read(folder)
    policies: list[TenantPolicy] = []
    for file in files:
        if file.suffix != ".yaml":
            continue
        page = pages.read(file)
        found, source = list(page.mistakes), page.source
        if source is not None:
            found += [*book_so_far.check(source), *_routes(source, known_models), *library.check(source)]
            found += _without_embeddings(source, protocols)
            if page.policy is not None:
                policies.append(library.bind(file, page.policy, source))
        mistakes += in_file_order(found)
    pages.keep_only(file for file in files if file.suffix == ".yaml")
    library.close(frozenset(file.name for file in files))
    if not mistakes and not policies:
        mistakes.append(ConfigIssue(shown(folder), 0, 0, "", "no policy: add a file that ends in .yaml"))
    return (None if mistakes else PolicySet.of(policies, library.projections)), mistakes


def near_misses(folder: Path) -> list[Path]:
    """The files in `folder` that look like policies and are not read, because their names end otherwise."""
    files = sorted(file for file in folder.iterdir() if not file.name.startswith("."))
    return [file for file in files if file.suffix != ".yaml" and file.suffix.lower() in {".yaml", ".yml", ".json"}]


class _Together:
    """What must differ from file to file, and from key to key."""

    def __init__(self) -> None:
        self._tenants: dict[str, str] = {}
        self._hashes: dict[str, str] = {}

    def check(self, source: YamlSource) -> Iterator[ConfigIssue]:
        tenant = source.get("tenant")
        if isinstance(tenant, str) and self._tenants.setdefault(tenant, source.file) != source.file:
            yield source.mistake(("tenant",), f"{self._tenants[tenant]} is of tenant {tenant} too: one file each")
        ids: dict[str, int] = {}
        for index, key in enumerate(source.items("keys")):
            name, digest = (key.get("id"), key.get("sha256")) if isinstance(key, dict) else (None, None)
            if isinstance(name, str) and ids.setdefault(name, index) != index:
                yield source.mistake(("keys", index, "id"), f"keys[{ids[name]}] is called {name} too")
            here = f"{source.file}: keys[{index}]"
            if isinstance(digest, str) and (first := self._hashes.setdefault(digest.lower(), here)) != here:
                yield source.mistake(("keys", index, "sha256"), f"the same key as {first}: a key has one owner")


def _routes(source: YamlSource, known_models: list[str] | None) -> Iterator[ConfigIssue]:
    before: dict[str, list[tuple[int, dict[str, Any]]]] = {}
    for index, route in enumerate(source.items("routes")):
        if not isinstance(route, dict):
            continue
        name = route.get("model")
        if isinstance(name, str):
            yield from _among(source, name, index, route, before.setdefault(name, []))
            before[name].append((index, route))
        for where, engine in _engines(route):
            if known_models is not None and engine not in known_models:
                hint = nearest(engine, known_models)
                known = "" if hint else f"; known: {', '.join(known_models)}"
                yield source.mistake(
                    ("routes", index, *where), f"no model in config.yaml is called '{engine}'{known}", hint
                )


def _among(
    source: YamlSource, name: str, index: int, route: dict[str, Any], before: list[tuple[int, dict[str, Any]]]
) -> Iterator[ConfigIssue]:
    """What is wrong with a route beside those before it that have the same name."""
    for other, earlier in before:
        if (earlier.get("mode") == "embeddings") != (route.get("mode") == "embeddings"):
            yield source.mistake(
                ("routes", index, "model"),
                f"routes[{other}] has this name too, and only one of the two makes embeddings: name them apart",
            )
            return
        if "when" not in earlier and not nearest("when", earlier):
            yield source.mistake(
                ("routes", index, "model"), f"never reached: routes[{other}] takes every request for {name}"
            )
            return
        if "when" in earlier and _alike(source, earlier, route):
            yield source.mistake(
                ("routes", index, "when"), f"never reached: routes[{other}] takes these requests for {name} already"
            )
            return


def _alike(source: YamlSource, one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether the `when` of two routes holds for the same requests, as far as equal conditions tell."""
    if not isinstance(one.get("when"), dict) or not isinstance(other.get("when"), dict):
        return False
    first, second = (source.part(route["when"]).check(RouteCondition)[0] for route in (one, other))
    if first is None or first != second:
        return False
    return one.get("default_max_tokens") == other.get("default_max_tokens") or not first.names("max_tokens")


def _engines(route: dict[str, Any]) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """The models that a route names, mistakes or not, each with where it does so."""
    for role in ("teacher", "student", "baseline"):
        if isinstance(engine := route.get(role), str):
            yield (role,), engine
    if isinstance(quality := route.get("quality"), dict) and isinstance(judge := quality.get("judge"), str):
        yield ("quality", "judge"), judge
    students = route.get("students")
    for index, one in enumerate(students if isinstance(students, list) else ()):
        if isinstance(one, str):
            yield ("students", index), one
        elif isinstance(one, dict) and isinstance(engine := one.get("model"), str):
            yield ("students", index, "model"), engine


def _without_embeddings(source: YamlSource, protocols: Mapping[str, str]) -> Iterator[ConfigIssue]:
    for index, route in enumerate(source.items("routes")):
        embeds = isinstance(route, dict) and route.get("mode") == "embeddings"
        for where, engine in _engines(route) if embeds else ():
            protocol = protocols.get(engine, "openai")
            if where[0] in {"student", "students"} and protocol != "openai":
                way_out = "; text-embeddings-inference speaks that, at its /v1" if protocol == "tgi" else ""
                yield source.mistake(
                    ("routes", index, *where),
                    f"{engine} has protocol {protocol}, which makes no embeddings: name a model of protocol "
                    f"openai{way_out}",
                )


def _names(source: YamlSource | None) -> list[str] | None:
    """The model names of a config.yaml that has mistakes; None if it tells none."""
    models = source.items("models") if source else []
    names = [model.get("name") for model in models if isinstance(model, dict)]
    return list(dict.fromkeys(name for name in names if isinstance(name, str))) or None


def _protocols(source: YamlSource | None) -> Iterator[tuple[str, str]]:
    """Of each model its name and its protocol, also of a config.yaml that has mistakes."""
    for model in source.items("models") if source else ():
        name, protocol = (model.get("name"), model.get("protocol")) if isinstance(model, dict) else (None, None)
        if isinstance(name, str) and isinstance(protocol, str):
            yield name, protocol


def _folder(settings: Settings | None, source: YamlSource | None, config_path: Path) -> Path | None:
    """The policies folder, also of a config.yaml that has mistakes; None if it cannot be told."""
    if settings is not None:
        return settings.policies
    if source is None:
        return None
    value = source.get("policies") if "policies" in source.data else "policies"
    return config_path.absolute().parent / value if isinstance(value, str) and value else None
