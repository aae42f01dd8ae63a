"""Validate compose files and manifests against their published schemas, and against ranges that schemas do not have.

    python -m deploy.check [FILE...]
    helm template gkt-gateway deploy/helm/gkt-gateway | python -m deploy.check /dev/stdin

For a compose file, it also reports services with more replicas than the slots in deploy/compose/haproxy.cfg. Without
FILE, it checks deploy/compose.yaml.

No network is used: the schemas come with packages of the extra `dev`. Each issue is a line with its file, its field and
the reason. The exit status is 1 if there are issues.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import jsonschema
import kubernetes_validate
from check_jsonschema.builtin_schemas import get_builtin_schema
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

HERE = Path(__file__).parent
KUBERNETES = "1.37"
"""Version of the schemas."""
BALANCER = HERE / "compose" / "haproxy.cfg"
FOREIGN = ("monitoring.coreos.com/", "gateway.networking.k8s.io/")
"""API groups of custom resources, whose schemas are not part of Kubernetes. Their objects are not validated."""

_MANY = 1_000_000_000
_PORT = (1, 65_535)
# Ranges that the API server checks and the schemas do not.
BOUNDS: Mapping[str, tuple[int, int]] = MappingProxyType(
    {
        "containerPort": _PORT,
        "port": _PORT,
        "targetPort": _PORT,
        "nodePort": (30_000, 32_767),
        "hostPort": _PORT,
        "endPort": _PORT,
        "prometheus.io/port": _PORT,
        "replicas": (0, 1_000),
        "minReplicas": (1, 1_000),
        "maxReplicas": (1, 1_000),
        "averageUtilization": (1, 10_000),
        "minReadySeconds": (0, _MANY),
        "initialDelaySeconds": (0, _MANY),
        "periodSeconds": (1, 1_800),
        "timeoutSeconds": (1, _MANY),
        "successThreshold": (1, _MANY),
        "failureThreshold": (1, _MANY),
        "terminationGracePeriodSeconds": (1, _MANY),
        "stabilizationWindowSeconds": (0, 3_600),
        "revisionHistoryLimit": (0, _MANY),
        "runAsUser": (0, 2**31 - 1),
        "runAsGroup": (0, 2**31 - 1),
        "fsGroup": (0, 2**31 - 1),
        "defaultMode": (0, 0o777),
        "maxSkew": (1, _MANY),
        "maxSurge": (0, 1_000),
        "maxUnavailable": (0, 1_000),
        "minAvailable": (0, 1_000),
        "seconds": (1, _MANY),  # duration of a sleep hook
        # fields of compose.yaml, like `replicas` above
        "retries": (1, _MANY),
        "target": _PORT,
        "published": _PORT,
    }
)
_PINNED = re.compile(r"[\w./-]+:v?\d+\.\d+[\w.-]*(?:@sha256:[0-9a-f]{64})?", re.ASCII)
_QUANTITY = re.compile(r"(\d+(?:\.\d+)?)(m|k|M|G|T|Ki|Mi|Gi|Ti)?", re.ASCII)
_FACTORS = {"m": Decimal("0.001"), "k": Decimal(10**3), "M": Decimal(10**6), "G": Decimal(10**9), "T": Decimal(10**12),
            "Ki": Decimal(2**10), "Mi": Decimal(2**20), "Gi": Decimal(2**30), "Ti": Decimal(2**40)}  # fmt: skip
_PERCENT = re.compile(r"(\d+)%", re.ASCII)
_PARTS = frozenset({"maxSurge", "maxUnavailable", "minAvailable"})
_QUANTITIES = frozenset({"sizeLimit", "averageValue"})
_SIZE = re.compile(r"\d+(?:\.\d+)?(?:b|[kmgt]b?)?", re.ASCII | re.IGNORECASE)
_SIZES = frozenset({"memory", "shm_size"})
_NO_QUANTITY = "is not a quantity: use a value like 500m, 2 or 512Mi"
_GRACE_S = 30
# server-template PREFIX SLOTS SERVICE:PORT
_PLACES = re.compile(r"^\s*server-template\s+\S+\s+(\d+)\s+([\w.-]+):\d+\b", re.ASCII | re.MULTILINE)
_DURATION = re.compile(r"(?:\d+h)?(?:\d+m)?(?:\d+s)?(?:\d+ms)?", re.ASCII)
_DURATIONS = frozenset({"stop_grace_period", "interval", "timeout", "start_period"})

Place = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class ManifestIssue:
    """An issue in a file. `place` is the path of the field, such as ("spec", "replicas")."""

    file: Path
    place: Place
    what: str

    def __str__(self) -> str:
        way = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in self.place)
        return f"{self.file}: {way.lstrip('.') or 'whole file'}: {self.what}"


def documents(path: Path) -> list[dict[str, Any]]:
    """Return the documents of a YAML file. Raises MarkedYAMLError of ruamel.yaml, with its line, and OSError."""
    return [document for document in YAML(typ="safe").load_all(path.read_text("utf-8")) if document is not None]


def issues_in(path: Path) -> Iterator[ManifestIssue]:
    """Yield the issues of a file: a compose file if it has `services`, else manifests."""
    try:
        found = documents(path)
    except (MarkedYAMLError, OSError) as error:
        yield ManifestIssue(path, (), f"cannot be read: {error}")
        return
    for document in found:
        if not isinstance(document, dict):
            yield ManifestIssue(path, (), "is neither a compose file nor a manifest: it has no fields")
        elif "services" in document:
            yield from _in_compose(path, document)
        else:
            metadata = document.get("metadata")
            kind = f"{document.get('kind', '?')} {metadata.get('name', '?') if isinstance(metadata, dict) else '?'}"
            yield from (ManifestIssue(path, (kind, *place), what) for place, what in _in_manifest(document))


def _in_compose(path: Path, document: dict[str, Any]) -> Iterator[ManifestIssue]:
    schema = get_builtin_schema("vendor.compose-spec")
    wrong = list(jsonschema.validators.validator_for(schema)(schema).iter_errors(document))
    for error in map(_nearest, wrong):
        yield ManifestIssue(path, tuple(error.absolute_path), error.message)
    if wrong:  # the following checks require a valid structure
        return
    for place, key, value in _values(document):
        if what := _out_of_bounds(key, value) or _no_duration(key, value) or _no_size(key, value):
            yield ManifestIssue(path, place, what)
    for name, service in document["services"].items():
        if what := _unpinned(service.get("image")):
            yield ManifestIssue(path, ("services", name, "image"), what)
        for number, port in enumerate(service.get("ports", ())):
            if what := _no_port(port):
                yield ManifestIssue(path, ("services", name, "ports", number), what)
    for name, most in _places().items():
        replicas = str(((document["services"].get(name) or {}).get("deploy") or {}).get("replicas"))
        if replicas.isdecimal() and most < int(replicas) <= BOUNDS["replicas"][1]:
            what = f"{replicas} is above the {most} slots in {BALANCER}"
            yield ManifestIssue(path, ("services", name, "deploy", "replicas"), what)


def _places() -> dict[str, int]:
    """Return the replicas that the load balancer supports, by service."""
    found: dict[str, int] = {}
    for places, service in _PLACES.findall(BALANCER.read_text("utf-8")):
        found[service] = min(int(places), found.get(service, int(places)))
    return found


def _no_duration(key: str, value: Any) -> str | None:
    if key not in _DURATIONS or not isinstance(value, str) or (value and _DURATION.fullmatch(value)):
        return None
    return f"{value!r} is not a duration: use a value like 45s or 1m30s"


def _no_size(key: str, value: Any) -> str | None:
    if key not in _SIZES or not isinstance(value, str) or _SIZE.fullmatch(value):
        return None
    return f"{value!r} is not a size: use a value like 512m or 2g"


def _no_port(port: Any) -> str | None:
    """Check the ports of `8080:80`, `127.0.0.1:8080:80/tcp`, `8080-8083:80` and similar forms."""
    parts = (
        re.split("[:-]", ":".join(str(port).partition("/")[0].split(":")[-2:])) if isinstance(port, str | int) else []
    )
    for part in parts:
        if part.isdigit() and not _PORT[0] <= int(part) <= _PORT[1]:
            return f"{part} is out of range: a port is from {_PORT[0]} to {_PORT[1]}"
    return None


def _in_manifest(document: dict[str, Any]) -> Iterator[tuple[Place, str]]:
    if not {"apiVersion", "kind"} <= document.keys():
        yield (), "has no apiVersion or kind"
        return
    if str(document["apiVersion"]).startswith(FOREIGN):
        return
    try:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
    except kubernetes_validate.SchemaNotFoundError:
        yield (), f"Kubernetes {KUBERNETES} has no {document['kind']} in {document['apiVersion']}"
        return
    except kubernetes_validate.ValidationError as error:
        nearest = _nearest(error)
        yield tuple(nearest.absolute_path), nearest.message
        return
    for place, key, value in _values(document):
        if what := _out_of_bounds(key, value):
            yield place, what
        if key == "image" and (what := _unpinned(value)):
            yield place, what
        if what := _no_part(key, value) or _no_amount(place, value):
            yield place, what
        if key == "resources" and isinstance(value, dict):
            yield from (((*place, *way), what) for way, what in _of_resources(value))
    yield from _of_pairs(document)


def _of_pairs(document: dict[str, Any]) -> Iterator[tuple[Place, str]]:
    """Yield issues of combinations of values that are valid separately."""
    spec = document.get("spec") or {}
    least, most = spec.get("minReplicas"), spec.get("maxReplicas")
    if least is not None and most is not None and least > most:
        yield ("spec", "minReplicas"), f"{least} is above maxReplicas, which is {most}"
    values = list(_values(document))
    grace_s = next((value for _, key, value in values if key == "terminationGracePeriodSeconds"), None) or _GRACE_S
    for place, key, value in values:
        if key == "sleep" and isinstance(value, dict) and value["seconds"] > grace_s > 0:
            yield (*place, "seconds"), f"{value['seconds']} is above terminationGracePeriodSeconds, which is {grace_s}"
        if key == "rollingUpdate" and isinstance(value, dict):
            nothing = [name for name in ("maxSurge", "maxUnavailable") if value.get(name) in (0, "0%")]
            if len(nothing) > 1:
                yield place, "maxSurge and maxUnavailable are both 0: no pod could be replaced"


def _of_resources(resources: dict[str, Any]) -> Iterator[tuple[Place, str]]:
    amounts: dict[tuple[str, str], Decimal] = {}
    for kind in ("requests", "limits"):
        for name, text in (resources.get(kind) or {}).items():
            found = _QUANTITY.fullmatch(str(text))
            if found is None:
                yield (kind, name), f"{text!r} {_NO_QUANTITY}"
            elif "/" in name and not str(text).isdigit():
                yield (kind, name), f"{text!r} is out of range: it must be an integer"
            else:
                amounts[kind, name] = Decimal(found[1]) * _FACTORS.get(found[2] or "", Decimal(1))
    for (kind, name), amount in amounts.items():
        limit = amounts.get(("limits", name))
        if kind == "requests" and limit is not None and amount > limit:
            yield (kind, name), f"{resources[kind][name]} is above its limit, which is {resources['limits'][name]}"


def _out_of_bounds(key: str, value: Any) -> str | None:
    if key not in BOUNDS or isinstance(value, bool) or not re.fullmatch(r"-?\d+", str(value), re.ASCII):
        return None
    low, high = BOUNDS[key]
    return None if low <= int(value) <= high else f"{value} is out of range: {low} to {high}"


def _no_part(key: str, value: Any) -> str | None:
    """Check a number or percentage of pods."""
    if key not in _PARTS or not isinstance(value, str):
        return None
    found = _PERCENT.fullmatch(value)
    if found is None:
        return f"{value!r} is not a number of pods: use 1 or 25%"
    return f"{value} is out of range: 0% to 100%" if int(found[1]) > 100 and key != "maxSurge" else None


def _no_amount(place: Place, value: Any) -> str | None:
    """Check quantities of volumes and of the autoscaler, and the number of pods in a scaling policy."""
    key = place[-1]
    if key == "value" and place[-3:-2] == ("policies",):
        return None if value >= 1 else f"{value} is out of range: 1 to {_MANY}"
    if key not in _QUANTITIES and place[-2:] != ("target", "value"):
        return None
    return None if _QUANTITY.fullmatch(str(value)) else f"{value!r} {_NO_QUANTITY}"


def _unpinned(image: Any) -> str | None:
    if not isinstance(image, str) or _PINNED.fullmatch(image):
        return None
    return f"{image!r} has no version: add one, like {image.partition(':')[0]}:1.2.3"


def _nearest(error: jsonschema.ValidationError) -> jsonschema.ValidationError:
    """Return the error of the alternative that matches best."""
    return jsonschema.exceptions.best_match([error]) or error


def _values(value: Any, place: Place = ()) -> Iterator[tuple[Place, str, Any]]:
    """Yield each nested value, with its path and its key."""
    pairs: Iterable[tuple[str | int, Any]] = ()
    if isinstance(value, dict):
        pairs = value.items()
    elif isinstance(value, list):
        pairs = enumerate(value)
    for key, inner in pairs:
        yield (*place, key), str(key), inner
        yield from _values(inner, (*place, key))


def main(arguments: list[str]) -> int:
    """Run the command. Return the exit status."""
    paths = [Path(argument) for argument in arguments] or [HERE / "compose.yaml"]
    found = [issue for path in paths for issue in issues_in(path)]
    for issue in found:
        sys.stderr.write(f"{issue}\n")
    sys.stdout.write(f"Files: {len(paths)}, issues: {len(found)}\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
