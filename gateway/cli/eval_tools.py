"""`gkt-gateway eval tools`: run multi-step tasks with tools, with the teacher, the student or both."""

from __future__ import annotations

from functools import partial
from itertools import combinations
from pathlib import Path  # noqa: TC003  typer reads it
from typing import TYPE_CHECKING, Annotated

import typer

from gateway.cli import eval_options

if TYPE_CHECKING:
    from gateway.evaluation.folder import RunFolder
    from gateway.evaluation.record import Example
    from gateway.evaluation.tool_tasks.run import ToolWork
    from gateway.policy.route_rules import SwitchRule

_tasks = partial(typer.Option, rich_help_panel="Tasks")
# A conversation with the longest prompt of a kind, its example and eight replies.
_SLOT_TOKENS = 4096


def tools(
    folder: Annotated[Path, typer.Argument(help="Folder of the run. An existing run is resumed.")],
    limit: Annotated[int, _tasks(min=1, max=4000, help="Number of tasks, of four kinds in turn.")] = 160,
    seed: Annotated[int, _tasks(min=0, max=2**31 - 1, help="Random seed of the tasks.")] = 0,
    mode: Annotated[
        str,
        _tasks(help="Comma-separated: teacher, student, plan (the student with plans), or switch (one for each turn)."),
    ] = "teacher,student",
    shots: Annotated[int, _tasks(min=0, max=1, help="Solved example tasks of the same kind in the prompt.")] = 1,
    turns: Annotated[int, _tasks(min=1, max=64, help="Most replies of a model in a task.")] = 8,
    max_tokens: Annotated[int, _tasks(min=16, help="Token limit of a reply.")] = 256,
    plan_tokens: Annotated[int, _tasks(min=1, max=4096, help="Token limit of a plan, for --mode plan.")] = 160,
    min_probability: Annotated[
        float,
        _tasks(min=0.01, max=0.99, help="Probability of the student's first token, for --mode switch."),
    ] = 0.8,
    margin: Annotated[
        float, _tasks(min=0, max=0.49, help="Margin of this probability at which the engine changes.")
    ] = 0.1,
    config: eval_options.Config = None,
    teacher: eval_options.Teacher = None,
    student: eval_options.Student = None,
    concurrency: eval_options.Concurrency = 4,
    slot_tokens: eval_options.SlotTokens = _SLOT_TOKENS,
    own_template: Annotated[
        bool,
        eval_options.engine_option(
            "--own-template", help="Use the chat template in a local model's file, not the one for Qwen2.5-Coder."
        ),
    ] = False,
) -> None:
    """Run multi-step tasks with tools, with the teacher alone, the student alone, and both.

    The tasks are generated from a seed, run in memory and need no network: calculations, changes of a table, of a
    calendar and of files. The reference solution of each has two to four calls. A task is solved if its final state is
    exactly right. The command prints the share of solved tasks with 95 % intervals, and the difference on the same
    tasks.

    With --mode plan, the teacher writes a plan for each task and another one after a failed call, as a gateway with
    guidance.tools: plan does. With --mode switch, the teacher or the student writes each turn, as with
    guidance.tools: switch. Only one engine runs at a time.

    Every reply is stored in FOLDER. After Ctrl-C or a kill, the same command resumes. More tasks can be added with a
    higher --limit. `gkt-gateway eval report FOLDER` adds costs and times.
    """
    with eval_options.of_the_extra():
        import gateway.evaluation.statistics  # noqa: F401  needed at the end of the run
    from dataclasses import replace

    from rich.console import Console

    from gateway.cli.eval_progress import EvalProgress
    from gateway.cli.interrupts import run_resumable
    from gateway.evaluation.folder import RunFolder
    from gateway.evaluation.pair import LocalPair
    from gateway.evaluation.tool_tasks.run import ROLES, TEMPLATE, ToolRun, ToolWork
    from gateway.telemetry.logs import set_up_logs

    roles = tuple(dict.fromkeys(part.strip() for part in mode.split(",")))
    if unknown := [role for role in roles if role not in ROLES]:
        raise typer.BadParameter(f"must be teacher, student, plan or switch, not {unknown[0]!r}", param_hint="--mode")
    pair = eval_options.pair_of(config, teacher, student, concurrency, slot_tokens)
    if isinstance(pair, LocalPair) and not own_template:
        pair = replace(pair, chat_template=TEMPLATE)
    work = ToolWork(
        count=limit,
        seed=seed,
        roles=roles,
        shots=shots,
        max_turns=turns,
        max_tokens=max_tokens,
        plan_tokens=plan_tokens,
        switch=_rule(min_probability, margin),
    )
    set_up_logs("error", "auto")  # each failed call is in the examples, by its label
    with RunFolder(folder) as opened, EvalProgress(Console(stderr=True, soft_wrap=True)) as progress:
        run = ToolRun(opened, work, pair, progress, concurrency=concurrency)
        if not run.is_finished:
            pair.fetch()
        run_resumable(run.run(), folder)
        _print(opened, work)


def _rule(min_probability: float, margin: float) -> SwitchRule:
    from gateway.policy.route_rules import SwitchRule

    try:
        return SwitchRule(min_probability=min_probability, margin=margin)
    except ValueError:
        raise typer.BadParameter(
            "must be smaller than --min-probability, and than 1 less --min-probability", param_hint="--margin"
        ) from None


def _print(folder: RunFolder, work: ToolWork) -> None:
    from gateway.cli.tables import console_for, plain_table
    from gateway.evaluation.tool_tasks.summary import difference, summarize_role
    from gateway.evaluation.tool_tasks.tasks import KINDS

    by_role: dict[str, dict[str, Example]] = {}
    for role in work.roles:
        found = (folder.examples.get((work.setting(role).name, task.id)) for task in work.tasks)
        by_role[role] = {one.question: one for one in found if one is not None}
    console = console_for(pipe_width=160)
    columns = (
        "tasks",
        "solved",
        "share",
        "95 %",
        "replies",
        "calls",
        "rejected",
        "as text",
        "failed",
        "input",
        "output",
    )
    table = plain_table("engine", "kind", *columns, right=slice(2, None))
    for role, examples in by_role.items():
        for kind in ("all", *KINDS):
            total = summarize_role(one for one in examples.values() if kind in {"all", one.question.split("-")[0]})
            if not total.n:
                continue
            low, high = total.interval
            counts = (total.turns, total.calls, total.tool_errors, total.text_calls, total.failed)
            tokens = (f"{count / total.n:.0f}" for count in (total.input_tokens, total.output_tokens))
            share, interval = f"{total.solved / total.n:.1%}", f"{low * 100:.1f} to {high * 100:.1f}"
            table.add_row(role, kind, str(total.n), str(total.solved), share, interval, *map(str, counts), *tokens)
        table.add_section()
    console.print(table)
    console.print(
        "95 %: Wilson's interval. Rejected: calls that a tool rejected. As text: replies with a call that the engine "
        "did not read as one. Input, output: mean tokens of a task.",
        style="dim",
        soft_wrap=not console.is_terminal,
    )
    if switched := [one.tools for one in by_role.get("switch", {}).values() if one.tools is not None]:
        by_teacher, turns = sum(one.teacher_turns or 0 for one in switched), sum(one.turns for one in switched)
        console.print(f"\nswitch: the teacher wrote {by_teacher} of {turns} replies.", highlight=False)
    for first, second in combinations(by_role, 2):
        found_difference = difference(by_role[first], by_role[second])
        if found_difference is None:
            continue
        low, high = found_difference.interval
        console.print(
            f"\n{first} minus {second} on {found_difference.n} common tasks: "
            f"{found_difference.difference * 100:+.1f} points (95 %: {low * 100:+.1f} to {high * 100:+.1f}); only the "
            f"{first} solves {found_difference.only_first}, only the {second} {found_difference.only_second}.",
            highlight=False,
            soft_wrap=not console.is_terminal,
        )
