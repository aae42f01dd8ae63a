"""`gkt-gateway init`: write a configuration for two running engines, and ask them a first guided question."""

from __future__ import annotations

import secrets
import shlex
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import typer
from pydantic import SecretStr, TypeAdapter, ValidationError
from rich.console import Console

from gateway.cli import init_engines, init_files, new_files
from gateway.cli.guided_answer import QUESTION, curl_command, print_answer, probed_gateway
from gateway.cli.init_answers import Answers, EngineOptions
from gateway.cli.init_files import NewGateway, Ports
from gateway.cli.interrupts import INTERRUPTED, run_until_interrupted
from gateway.config.scalars import Label, Name
from gateway.config.yaml_source import display_path
from gateway.errors import StartupError
from gateway.keys.token import new_token
from gateway.local.redis import EmbeddedRedis
from gateway.policy.guidance_rule import MAX_GUIDANCE_TOKENS
from gateway.server.ports import reserved_port
from gateway.telemetry.logs import set_up_logs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gateway.cli.init_engines import ChosenEngine, ProbedEngine
    from gateway.config.settings import Settings
    from gateway.policy.book import PolicySet

_DOCS = "gkt-gateway docs quickstart#your-own-engines"
_ENGINE = "URL of the {}: TGI, vLLM, llama.cpp or another OpenAI-compatible server; or provider/model of LiteLLM."
_KEY = "Key of the {}, as the name of an environment variable. Default: none; for a provider, its own variable."
_PRICE = "USD per 1M input, output and cached input tokens of the {}; 0,0: free. Default: LiteLLM's list price."
_MODEL = "Name of the model at the {}. Default: the only one that it serves."


def init(
    teacher: Annotated[str | None, typer.Option(help=_ENGINE.format("teacher"), metavar="URL|PROVIDER/MODEL")] = None,
    student: Annotated[str | None, typer.Option(help=_ENGINE.format("student"), metavar="URL|PROVIDER/MODEL")] = None,
    teacher_model: Annotated[str | None, typer.Option(help=_MODEL.format("teacher"), metavar="NAME")] = None,
    student_model: Annotated[str | None, typer.Option(help=_MODEL.format("student"), metavar="NAME")] = None,
    teacher_key: Annotated[str | None, typer.Option(help=_KEY.format("teacher"), metavar="env:NAME")] = None,
    student_key: Annotated[str | None, typer.Option(help=_KEY.format("student"), metavar="env:NAME")] = None,
    teacher_price: Annotated[str | None, typer.Option(help=_PRICE.format("teacher"), metavar="IN,OUT[,CACHED]")] = None,
    student_price: Annotated[str | None, typer.Option(help=_PRICE.format("student"), metavar="IN,OUT[,CACHED]")] = None,
    redis: Annotated[
        str | None,
        typer.Option(
            help="embedded, a URL, or env:NAME of a URL with a password. Default: embedded if the extra `local` or a "
            "Redis server is installed, else redis://127.0.0.1:6379.",
            metavar="URL",
        ),
    ] = None,
    tokens: Annotated[
        int, typer.Option(min=1, max=MAX_GUIDANCE_TOKENS, help="Tokens of guidance.")
    ] = init_engines.DEFAULT_TOKENS,
    tenant: Annotated[str, typer.Option("--tenant", "-t", help="Tenant of the policy.")] = "default",
    model_name: Annotated[str, typer.Option(help="Route: the value of `model` in requests.")] = "chat",
    out: Annotated[Path, typer.Option(help="Folder of the files.", metavar="DIR")] = Path(),
    force: Annotated[bool, typer.Option("--force", help="Overwrite existing files. Keeps copies: FILE.bak.")] = False,
    no_question: Annotated[bool, typer.Option("--no-question", help="Do not ask a question at the end.")] = False,
) -> None:
    """Write config.yaml, a policy and an admin key for two running engines, and ask a guided question.

    `gkt-gateway init --teacher http://127.0.0.1:8090 --teacher-price 0.90,0.90 --student http://127.0.0.1:8000
    --student-price 0.10,0.10`

    On a terminal, missing options are asked for. The engines are called: for their API and models, whether the student
    continues a text, and for one short answer. Keys of engines are read from the environment, and are not written.

    The new API key is printed once; the policy has its SHA-256. The admin key opens the dashboard. It is in the file
    admin.key, which only its owner may read. Files are written at the end, so that Ctrl-C or an error before leaves
    none. See `gkt-gateway docs quickstart`.
    """
    set_up_logs("error", "auto")
    _check_name("--tenant", tenant, TypeAdapter(Label))
    _check_name("--model-name", model_name, TypeAdapter(Name))
    init_files.require_new(out, tenant, force=force)
    console = Console()
    with _nothing_written():
        answers = Answers.of_terminal(console, out.absolute())
        chosen = answers.engines(
            EngineOptions(teacher, teacher_model, teacher_key, teacher_price),
            EngineOptions(student, student_model, student_key, student_price),
        )
        redis_url = answers.redis(redis)
        probed = (_probed(answers, chosen[0]), _probed(answers, chosen[1]))
        _print_guidance(probed[1], tokens)
        plan = NewGateway(
            tenant,
            model_name,
            redis_url,
            _free_ports(chosen),
            tokens,
            (
                (init_engines.with_probed_keys(chosen[0], probed[0]), probed[0]),
                (init_engines.with_probed_keys(chosen[1], probed[1]), probed[1]),
            ),
            new_token(),
            secrets.token_urlsafe(32),
        )
        files = plan.files()
        settings, book = init_files.checked(files, out.absolute())
        init_files.require_new(out, tenant, force=force)
        copies = new_files.write_all(
            {out / path: text for path, text in files.items()}, private={out / init_files.ADMIN_KEY}
        )
    try:
        *names, last = (display_path(out / path) for path in files)
        typer.echo(f"written  {', '.join(names)} and {last}, which pass `gkt-gateway check`")
        if copies:
            typer.echo(f"kept     {' and '.join(map(display_path, copies))}: the replaced files")
        if not no_question:
            run_until_interrupted(_ask(console, plan, settings, book), "question")
    except StartupError as error:
        raise StartupError(f"The files are written, but the question failed: {error.message}") from error
    finally:
        _print_next(plan, out)


def _check_name(option: str, value: str, kind: TypeAdapter[str]) -> None:
    try:
        kind.validate_python(value)
    except ValidationError as error:
        message = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise typer.BadParameter(message, param_hint=option) from None


@contextmanager
def _nothing_written() -> Iterator[None]:
    """Exit with 130 and a message after Ctrl-C, or after the end of the input."""
    try:
        yield
    except (KeyboardInterrupt, typer.Abort, typer.Exit):
        typer.echo("\nStopped. Nothing was written.", err=True)
        raise typer.Exit(INTERRUPTED) from None


def _probed(answers: Answers, engine: ChosenEngine) -> ProbedEngine:
    """Probe an engine. Raises StartupError."""
    with answers.console.status(f"probing the {engine.role}"):
        return run_until_interrupted(init_engines.probe_engine(engine, answers.folder), "init")


def _print_guidance(student: ProbedEngine, tokens: int) -> None:
    """Print how the student continues a text, and the deadline of guidance."""
    if student.placement == "prefix" and student.continuation is not None:
        typer.echo(f"student  continues a text that the teacher began (continuation {student.continuation.mode})")
    else:
        typer.echo(
            f"student  does not continue a text: the guidance goes into its prompt (placement {student.placement})"
        )
    typer.echo(
        f"guidance {tokens} tokens of the teacher begin each answer. More tokens: an answer closer to the teacher's, "
        "at a higher cost\n         its deadline follows the teacher's times. Without guidance in time, the student "
        "answers alone"
    )


def _free_ports(engines: tuple[ChosenEngine, ...]) -> Ports:
    """Return the default ports, or the next pair if one of them is in use, or an engine's."""
    taken = {urlsplit(engine.keys.get("api_base", "")).port for engine in engines}
    for step in range(0, 100, 10):
        ports = Ports(Ports().server + step, Ports().admin + step)
        if taken.intersection(ports):
            continue
        try:
            with reserved_port("0.0.0.0", ports.server, "server.port"), reserved_port("127.0.0.1", ports.admin, ""):  # noqa: S104
                return ports
        except StartupError:
            continue
    return Ports()


async def _ask(console: Console, plan: NewGateway, settings: Settings, book: PolicySet) -> None:
    """Ask a question through a gateway in this process, on free ports, with the written configuration."""
    (teacher, _), (student, probed) = plan.engines
    async with AsyncExitStack() as exits:
        with console.status("starting the gateway") as status:
            redis_url = settings.redis.url.get_secret_value()
            if redis_url == "embedded":
                redis_url = (await exits.enter_async_context(EmbeddedRedis())).url
            folder = exits.enter_context(TemporaryDirectory(prefix="gkt-init-", ignore_cleanup_errors=True))
            admin = settings.admin.model_copy(update={"port": 0, "key": SecretStr(secrets.token_urlsafe(24))})
            server = settings.server.model_copy(update={"host": "127.0.0.1", "port": 0})
            temporary = settings.model_copy(update={"server": server, "admin": admin, "data": Path(folder)})
            at, session = await exits.enter_async_context(probed_gateway(temporary, book, redis_url, status))
        await print_answer(
            console,
            session,
            at.admin,
            QUESTION,
            placement=probed.placement,
            models={"teacher": teacher.shown, "student": student.shown},
            tenant=plan.tenant,
            route=plan.route,
            temperature=probed.temperature,
        )


def _print_next(plan: NewGateway, out: Path) -> None:
    folder = "" if out == Path() else f"cd {shlex.quote(str(out))} && "
    curl = curl_command(f"http://127.0.0.1:{plan.ports.server}", plan.key, plan.route)
    policy = display_path(out / init_files.policy_path(plan.tenant))
    admin_key = display_path(out / init_files.ADMIN_KEY)
    if names := init_files.overriding():
        typer.echo(f"\nIn this shell, {', '.join(names)} would override config.yaml.")
    typer.echo(
        f"\nNext:\n\n{folder}gkt-gateway serve\n\nThen call the gateway from another terminal. The command has the new "
        f"API key, which is shown only once; {policy} has its SHA-256:\n\n{curl}\n\n"
        f"The dashboard is at http://127.0.0.1:{plan.ports.admin}/. Log in with the admin key in {admin_key}. "
        f"Keep that file out of version control.\n\nDocumentation: {_DOCS}",
    )
