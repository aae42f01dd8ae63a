"""All tenants' policies, loaded and cross-checked, and the callers' keys."""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import sha256
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from gateway.config.providers import completed
from gateway.config.settings import check_settings
from gateway.config.yaml_messages import nearest
from gateway.config.yaml_source import YamlSource, display_path, in_file_order, parse
from gateway.errors import ConfigError, ConfigIssue
from gateway.policy.conditions import RouteCondition
from gateway.policy.files import CheckedFile, read_checked, yaml_files
from gateway.policy.identity_checks import check_identities, identities_by_issuer, with_places
from gateway.policy.library import ProjectionRegistry
from gateway.policy.projections import PROJECTIONS
from gateway.policy.schema import TenantPolicy
from gateway.policy.split import complete_routes

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from gateway.config.settings import Settings
    from gateway.config.yaml_messages import Loc
    from gateway.policy.identities import TenantIdentities
    from gateway.policy.key_entry import KeyEntry
    from gateway.policy.projections import Projection


class PolicyFileCache:
    """Read policy files and cache those without issues."""

    def __init__(self) -> None:
        self.registry = ProjectionRegistry()
        self._cached: dict[Path, CheckedFile[TenantPolicy]] = {}
        self._digests: dict[Path, str] = {}

    def read(self, file: Path) -> CheckedFile[TenantPolicy]:
        """Return the current content of the file. Blocks; never raises."""
        policy_file = read_checked(file, None, self._cached.get(file), _parse)
        self._digests[file] = policy_file.digest
        if policy_file.source is None or policy_file.issues:
            self._cached.pop(file, None)
        else:
            self._cached[file] = policy_file
            policy_file.source.root = None  # `issue` parses the text again when it needs a line
        return policy_file

    def retain(self, files: Iterable[Path]) -> None:
        """Drop all other files from the cache."""
        files = set(files)
        for entries in (self._cached, self._digests):
            for file in entries.keys() - files:
                del entries[file]

    @property
    def files(self) -> int:
        """Return the number of files read."""
        return len(self._digests) + len(self.registry.digests)

    @property
    def version(self) -> str:
        """Return a hash over the names and the last contents of the files."""
        read = {file.name: digest for file, digest in self._digests.items()} | self.registry.digests
        lines = sorted(f"{name} {digest}" for name, digest in read.items())
        return sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def _parse(raw: bytes, digest: str, file: Path) -> CheckedFile[TenantPolicy]:
    source, issues = parse(raw, display_path(file))
    policy = None
    if source is not None:
        policy, wrong = source.check(TenantPolicy)
        issues = [*issues, *wrong]
        if policy is not None and policy.identities:
            lines = (source.issue(("identities", index), "").line for index in range(len(policy.identities)))
            policy = with_places(policy, [f"{source.file}:{line}" for line in lines])
    return CheckedFile(digest, source, policy, tuple(in_file_order(issues)))


_NO_CLAIMS: Mapping[str, object] = MappingProxyType({})


class Caller(NamedTuple):
    """A caller: the tenant's policy and the key used. `claims` are those of a verified token; empty for an API key."""

    policy: TenantPolicy
    key: KeyEntry
    claims: Mapping[str, object] = _NO_CLAIMS


@dataclass(frozen=True, slots=True)
class PolicySet:
    """All policies and the projections that they may name. Immutable: a reload creates a new set.

    `identities` has the rules for tokens by issuer, then by tenant.
    """

    policies: tuple[TenantPolicy, ...]
    projections: Mapping[str, Projection] = field(repr=False)
    _callers: Mapping[str, Caller] = field(repr=False)
    _of_tenant: Mapping[str, TenantPolicy] = field(repr=False)
    _only_embed: frozenset[str] = field(repr=False)
    _guidance_tokens: Mapping[str, int] = field(repr=False)  # by teacher
    identities: Mapping[str, tuple[TenantIdentities, ...]] = field(repr=False)

    @classmethod
    def of(cls, policies: Iterable[TenantPolicy], projections: Mapping[str, Projection] = PROJECTIONS) -> PolicySet:
        """Return the set of policies that were checked against each other. The first of equal keys wins."""
        policies = tuple(policies)
        callers: dict[str, Caller] = {}
        modes: dict[str, set[str]] = {}
        tokens_of: dict[str, int] = {}
        for policy in policies:
            for key in policy.keys:
                callers.setdefault(key.sha256, Caller(policy, key))
            for route in policy.routes:
                for name in route.engines:
                    modes.setdefault(name, set()).add(route.mode)
            for route in policy.all_routes:
                if route.teacher and (tokens := policy.max_guidance_tokens(route)):
                    tokens_of[route.teacher] = max(tokens, tokens_of.get(route.teacher, 0))
        only_embed = frozenset(name for name, used in modes.items() if used == {"embeddings"})
        of_tenant = {policy.tenant: policy for policy in policies}
        return cls(policies, projections, callers, of_tenant, only_embed, tokens_of, identities_by_issuer(policies))

    def tenant_of_key(self, token: str) -> Caller | None:
        """Return the caller of a key from the policy files; None if there is none."""
        return self.caller_of(sha256(token.encode("utf-8", "surrogatepass")).hexdigest())

    def caller_of(self, digest: str) -> Caller | None:
        """Return the caller of the key with this SHA-256 from the policy files; None if there is none."""
        return self._callers.get(digest)

    def policy_of(self, tenant: str) -> TenantPolicy | None:
        """Return a tenant's policy; None if there is no such tenant."""
        return self._of_tenant.get(tenant)

    def teachers(self) -> set[str]:
        """Return the models that give guidance on some route, also in a shadow or on a caller's request."""
        return set(self._guidance_tokens)

    def max_guidance_tokens(self, teacher: str) -> int:
        """Return the most guidance tokens that a route requests from this teacher; 0 without such a route."""
        return self._guidance_tokens.get(teacher, 0)

    def only_embeds(self, name: str) -> bool:
        """Return whether a configured model serves only embeddings."""
        return name in self._only_embed


def load_all(config_path: Path, cache: PolicyFileCache | None = None) -> tuple[Settings, PolicySet, YamlSource]:
    """Load config.yaml and its policies, and return them with the file; see `check_book`.

    Raises ConfigError with every issue of both.
    """
    settings, policy_set, source, issues = _check_all(config_path, cache)
    if settings is None or policy_set is None or source is None:
        raise ConfigError(issues)
    return settings, policy_set, source


def check_all(
    config_path: Path, cache: PolicyFileCache | None = None
) -> tuple[Settings | None, PolicySet | None, list[ConfigIssue]]:
    """Check config.yaml and its policies. Return both, each None if it has issues, and the issues."""
    settings, policy_set, _, issues = _check_all(config_path, cache)
    return settings, policy_set, issues


def _check_all(
    config_path: Path, cache: PolicyFileCache | None
) -> tuple[Settings | None, PolicySet | None, YamlSource | None, list[ConfigIssue]]:
    settings, source, issues = check_settings(config_path)
    folder = settings.policies if settings else _folder(source, config_path)
    if folder is None:
        return settings, None, source, issues
    protocols = _protocols(source)
    known = list(settings.by_name if settings else protocols) or None
    issuers = None if settings is None else settings.identity.urls
    policy_set, more = check_book(folder, known, protocols, cache, issuers)
    return settings, policy_set, source, [*issues, *more]


def check_book(
    folder: Path,
    known_models: list[str] | None,
    protocols: Mapping[str, str] = MappingProxyType({}),
    cache: PolicyFileCache | None = None,
    issuers: Mapping[str, str] | None = None,
) -> tuple[PolicySet | None, list[ConfigIssue]]:
    """Check every *.yaml in `folder`, one tenant each, with the projections and exemplars in its subfolders.

    Return the policies, or None if there are issues, and the issues.

    Args:
        known_models: the model names of config.yaml; None: unknown, so routes are not checked against them.
        protocols: the protocols of the models of config.yaml, by name: only `openai` has a route for embeddings.
        issuers: the URLs of the issuers of config.yaml by name; None: unknown, so identities are not compared.
    """
    cache = cache if cache is not None else PolicyFileCache()
    try:
        files, issues = yaml_files(folder)
    except OSError as error:
        why = (error.strerror or "error").lower()
        return None, [ConfigIssue(display_path(folder), 0, 0, "", f"the policies folder cannot be read: {why}")]
    registry = cache.registry
    tenants: dict[str, str] = {}
    hashes: dict[str, str] = {}
    issues += registry.read(folder)
    policies: list[TenantPolicy] = []
    checked: list[tuple[TenantPolicy, YamlSource]] = []
    for file in files:
        policy_file = cache.read(file)
        found, source = list(policy_file.issues), policy_file.source
        if source is not None:
            found += [*_duplicates(source, tenants, hashes), *_routes(source, known_models, protocols)]
            found += registry.check(source)
            if policy_file.value is not None:
                policies.append(registry.bind(file, policy_file.value, source))
                checked.append((policy_file.value, source))
        issues += in_file_order(found)
    issues += check_identities(checked, issuers)
    cache.retain(files)
    registry.close(frozenset(file.name for file in files))
    if not issues and not policies:
        issues.append(ConfigIssue(display_path(folder), 0, 0, "", "no policy: add a file that ends in .yaml"))
    return (None if issues else PolicySet.of(policies, registry.projections)), issues


def near_misses(folder: Path) -> list[Path]:
    """Return the files in `folder` that look like policies but are not read because of their suffix."""
    files = sorted(file for file in folder.iterdir() if not file.name.startswith("."))
    return [file for file in files if file.suffix != ".yaml" and file.suffix.lower() in {".yaml", ".yml", ".json"}]


def _duplicates(source: YamlSource, tenants: dict[str, str], hashes: dict[str, str]) -> Iterator[ConfigIssue]:
    """Yield the tenant and the keys of a file that earlier files have, and add the others to `tenants` and `hashes`."""
    tenant = source.get("tenant")
    if isinstance(tenant, str) and tenants.setdefault(tenant, source.file) != source.file:
        yield source.issue(("tenant",), f"{tenants[tenant]} has tenant {tenant} too: merge the files")
    ids: dict[str, int] = {}
    for index, key in enumerate(source.items("keys")):
        name, digest = (key.get("id"), key.get("sha256")) if isinstance(key, dict) else (None, None)
        if isinstance(name, str) and ids.setdefault(name, index) != index:
            yield source.issue(("keys", index, "id"), f"keys[{ids[name]}] has id {name} too: ids must be unique")
        here = f"{source.file}: keys[{index}]"
        if isinstance(digest, str) and (first := hashes.setdefault(digest.lower(), here)) != here:
            yield source.issue(("keys", index, "sha256"), f"the same key as {first}: remove one of the two")


def _routes(source: YamlSource, known_models: list[str] | None, protocols: Mapping[str, str]) -> Iterator[ConfigIssue]:
    before: dict[str, list[tuple[int, dict[str, Any]]]] = {}
    for index, route in enumerate(source.items("routes")):
        if not isinstance(route, dict):
            continue
        for where, name in _names(route):
            yield from _conflicts(source, name, ("routes", index, *where), route, before.setdefault(name, []))
            before[name].append((index, route))
        for where, engine in _engines(route):
            loc, protocol = ("routes", index, *where), protocols.get(engine, "openai")
            if known_models is not None and engine not in known_models:
                hint = nearest(engine, known_models)
                known = "" if hint else f"; known: {', '.join(known_models)}"
                yield source.issue(loc, f"no model in config.yaml is called '{engine}'{known}", hint)
            if route.get("mode") == "embeddings" and where[0] in {"student", "students"} and protocol != "openai":
                message = f"{engine} has protocol {protocol}, which makes no embeddings: name a model of protocol "
                tei = "; text-embeddings-inference speaks that, at its /v1" if protocol == "tgi" else ""
                yield source.issue(loc, f"{message}openai{tei}")


def _names(route: dict[str, Any]) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Yield the names of a route, each once, with their locations. Its own check reports names that occur twice."""
    aliases = route.get("aliases")
    named: list[tuple[tuple[str | int, ...], Any]] = [(("model",), route.get("model"))]
    named += [(("aliases", index), name) for index, name in enumerate(aliases if isinstance(aliases, list) else ())]
    once = {name: where for where, name in reversed(named) if isinstance(name, str)}
    yield from ((where, name) for name, where in reversed(once.items()))


def _conflicts(
    source: YamlSource, name: str, loc: Loc, route: dict[str, Any], before: list[tuple[int, dict[str, Any]]]
) -> Iterator[ConfigIssue]:
    """Yield the issues of a route with earlier routes of the same name. `loc` is the location of the name."""
    for other, earlier in before:
        if (earlier.get("mode") == "embeddings") != (route.get("mode") == "embeddings"):
            message = f"routes[{other}] has this name too, and only one of the two makes embeddings: name them apart"
            yield source.issue(loc, message)
            return
        if "when" not in earlier and not nearest("when", earlier):
            yield source.issue(loc, f"never reached: routes[{other}] takes every request for {name}")
            return
        if "when" in earlier and _equal_conditions(source, earlier, route):
            message = f"never reached: routes[{other}] takes these requests for {name} already"
            yield source.issue((*loc[:2], "when"), message)
            return


def _equal_conditions(source: YamlSource, one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Return whether the `when` conditions of two routes are equal and so match the same requests."""
    if not isinstance(one.get("when"), dict) or not isinstance(other.get("when"), dict):
        return False
    first, second = (YamlSource(source.file, route["when"]).check(RouteCondition)[0] for route in (one, other))
    if first is None or first != second:
        return False
    return one.get("default_max_tokens") == other.get("default_max_tokens") or not first.names("max_tokens")


def _engines(route: dict[str, Any]) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Yield the models that a route names, valid or not, each with its location."""
    for role in ("teacher", "student", "baseline"):
        if isinstance(engine := route.get(role), str):
            yield (role,), engine
    if isinstance(quality := route.get("quality"), dict) and isinstance(judge := quality.get("judge"), str):
        yield ("quality", "judge"), judge
    for variant in complete_routes(route):
        yield from ((variant.loc(*where), engine) for where, engine in _engines(dict(variant.own)))
    students = route.get("students")
    for index, one in enumerate(students if isinstance(students, list) else ()):
        if isinstance(one, str):
            yield ("students", index), one
        elif isinstance(one, dict) and isinstance(engine := one.get("model"), str):
            yield ("students", index, "model"), engine


def _protocols(source: YamlSource | None) -> dict[str, str]:
    """Return the protocol of each model by name, also of a config.yaml with issues; "openai" for an invalid one."""
    models = [completed(model) for model in (source.items("models") if source else ()) if isinstance(model, dict)]
    named = ((model.get("name"), model.get("protocol")) for model in models)
    return {
        name: protocol if isinstance(protocol, str) else "openai" for name, protocol in named if isinstance(name, str)
    }


def _folder(source: YamlSource | None, config_path: Path) -> Path | None:
    """Return the policies folder of a config.yaml with issues; None if it is unknown."""
    if source is None:
        return None
    value = source.get("policies") if "policies" in source.data else "policies"
    return config_path.absolute().parent / value if isinstance(value, str) and value else None
