"""Install real engines and run the contract suite against them. `scripts/engines --help` shows the options."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from tests.contracts import table
from tests.contracts.catalog import CATALOG, REAL, ROOT, Engine, NotInstalled, cache, set_tgi_checkout
from tests.contracts.recording import RESULTS, ROWS, EngineResults, write_result

console = Console(stderr=True, highlight=False, soft_wrap=True)

app = typer.Typer(add_completion=False, rich_markup_mode="markdown", pretty_exceptions_enable=False)


@app.command()
def main(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help=f"{', '.join(REAL)}; default: all.")
    ] = None,
    url: Annotated[
        str, typer.Option(help="Test a server of NAME that already runs, such as http://127.0.0.1:8000 (without /v1).")
    ] = "",
    settings: Annotated[
        str,
        typer.Option(help="With --url: hardware and flags of this server, such as 'H100, bfloat16'. For the results."),
    ] = "",
    tgi_router: Annotated[
        str,
        typer.Option(
            "--tgi-router",
            metavar="PATH",
            help="A checkout of text-generation-inference: build its router once, and test it with a small shard.",
        ),
    ] = "",
    install_only: Annotated[bool, typer.Option("--install-only", help="Install the engines, but run nothing.")] = False,
    installed: Annotated[
        bool, typer.Option("--installed", help="Run installed engines only; install nothing.")
    ] = False,
    write_table: Annotated[
        bool, typer.Option("--table", help="Run nothing. Write docs/reference/engine-tests.md from the latest results.")
    ] = False,
) -> None:
    """Install real engines for the CPU and run the contract suite against each.

    Each engine gets an environment below ~/.cache/gkt-gateway/engines (vLLM: 6 GB). The model is SmolLM2 135M, which is
    fetched once. An engine is started on 127.0.0.1, is teacher and student of a gateway, and is stopped after its
    tests. One engine runs at a time. Engines that cannot be installed are reported with the reason.

    Exit status: 0: every contract of the tested engines holds. 1: a contract failed. 2: a NAME could not be tested.

    Examples:

    - `scripts/engines llama.cpp`
    - `scripts/engines vllm llama.cpp && scripts/engines --table`
    - `scripts/engines tgi --tgi-router ~/text-generation-inference`
    - `scripts/engines tgi --url http://127.0.0.1:3000 --settings "A10, float16"`
    """
    selected = names or list(REAL)
    if unknown := [name for name in selected if name not in REAL]:
        raise typer.BadParameter(f"unknown engine {unknown[0]!r}: use one of {', '.join(REAL)}")
    if url and len(selected) != 1:
        raise typer.BadParameter("--url needs exactly one NAME, the kind of engine at this address")
    if settings and not url:
        raise typer.BadParameter("--settings needs --url: the settings of other engines are known")
    if write_table:
        for name in selected:
            if (results := _latest(name)) is not None:
                write_result(name, results)
        table.write()
        console.print(f"wrote {table.PAGE.relative_to(ROOT)} and {RESULTS.relative_to(ROOT)}")
        return
    if tgi_router:
        try:
            set_tgi_checkout(Path(tgi_router))
        except NotInstalled as error:
            raise typer.BadParameter(str(error)) from error
    outcomes: dict[str, EngineResults | str] = {}
    for name in selected:
        engine = CATALOG[name]
        try:
            if not url:
                _make_available(engine, install=not installed)
            outcomes[name] = "installed" if install_only else _run_suite(engine, url, settings)
        except NotInstalled as error:
            outcomes[name] = f"not tested: {error}"
    _show(outcomes)
    tested = [found for found in outcomes.values() if isinstance(found, EngineResults)]
    failed = any((found.outcome(row) or "").startswith("fails") for found in tested for row in ROWS)
    missing = names is not None and any(str(found).startswith("not tested") for found in outcomes.values())
    raise typer.Exit(1 if failed else 2 if missing else 0)


def _make_available(engine: Engine, *, install: bool) -> None:
    if engine.install is None:
        raise NotInstalled(engine.unavailable)
    if install:
        engine.install(lambda text: console.print(f"{engine.name}: {text}"))
    elif not engine.is_installed():
        raise NotInstalled(f"it is not installed: run scripts/engines {engine.name}")


def _run_suite(engine: Engine, url: str, settings: str) -> EngineResults:
    """Run the suite and return its results. Raises NotInstalled if the engine did not start."""
    file = _results_file(engine.name)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.unlink(missing_ok=True)
    console.print(f"{engine.name}: starting it and running the contract suite")
    environ = {**os.environ, "GKT_ENGINE": engine.name, "GKT_ENGINE_RESULTS": str(file)}
    if url:
        environ |= {"GKT_ENGINE_URL": url, "GKT_ENGINE_SETTINGS": settings}
    command = (sys.executable, "-m", "pytest", "-n", "0", "-v", "--tb=line", "tests/contracts/test_engines.py")
    subprocess.run(command, cwd=ROOT, env=environ, stdin=subprocess.DEVNULL, stdout=sys.stderr, check=False)
    results = _latest(engine.name)
    if results is None:
        raise NotInstalled("the engine did not start; the output above ends with its log")
    return results


def _results_file(name: str) -> Path:
    return cache() / "results" / f"{name}.json"


def _latest(name: str) -> EngineResults | None:
    """Return the results of the engine's latest run on this machine; None without one of this version of the suite."""
    try:
        return EngineResults(**json.loads(_results_file(name).read_text())[name])
    except (OSError, TypeError):
        return None


def _show(outcomes: dict[str, EngineResults | str]) -> None:
    tested = {name: found for name, found in outcomes.items() if isinstance(found, EngineResults)}
    if tested:
        shown = Table("contract", *tested, title="contract suite")
        for label in ("version", "model", "settings"):
            shown.add_row(label, *(getattr(found, label) for found in tested.values()))
        for row in ROWS:
            shown.add_row(row, *(found.outcome(row) or "not run" for found in tested.values()))
        Console().print(shown)
    for name, found in outcomes.items():
        if isinstance(found, str):
            Console(soft_wrap=True).print(f"{name}: {found}", highlight=False)


if __name__ == "__main__":
    app(prog_name="scripts/engines")
