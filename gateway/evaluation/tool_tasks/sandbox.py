"""Tasks for text files in memory. The state has the texts by path."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gateway.evaluation.questions.problem_stories import BAKED, KEPT, PEOPLE
from gateway.evaluation.tool_tasks.tools import GeneratedTask, Parameter, TaskKind, Tool, ToolError, call

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gateway.evaluation.questions.problem_stories import ProblemRandom
    from gateway.evaluation.tool_tasks.tools import State, ToolCall

_KEYS = ("timeout", "retries", "port", "workers", "cache_size", "batch_size", "max_users")
_SECTIONS = ("server", "client", "worker", "storage")
_VERBS = ("load", "read", "fetch", "parse", "build", "check", "send", "sort")
_NOUNS = ("orders", "users", "prices", "reports", "invoices", "events")
_MODULES = ("main", "report", "import_data", "jobs", "views", "export", "tools")
_FOLDERS = ("notes", "drafts", "inbox", "archive", "done")
_CHORES = ("call the bank", "buy stamps", "book the room", "print the slides", "water the plants", "send the bill")
_MAX_FILE_CHARS = 5000


def _file(state: State, given: Mapping[str, Any]) -> str:
    path: str = given["path"].strip().removeprefix("./").removeprefix("/")
    if path not in state["files"]:
        raise ToolError(f"there is no file {path!r}")
    return path


def _check_size(chars: int) -> None:
    if chars > _MAX_FILE_CHARS:
        raise ToolError(f"a file may have at most {_MAX_FILE_CHARS} characters")


def _written(state: State, path: str, text: str) -> State:
    _check_size(len(text))
    return state | {"files": state["files"] | {path: text}}


def _search(state: State, given: Mapping[str, Any]) -> tuple[State, str]:
    searched = given["text"]
    if not searched:
        raise ToolError("text must not be empty")
    lines = [
        f"{path}: {line}" for path, text in state["files"].items() for line in text.splitlines() if searched in line
    ]
    return state, "\n".join(lines) or f"No file has {searched!r}."


def _read(state: State, given: Mapping[str, Any]) -> tuple[State, str]:
    return state, state["files"][_file(state, given)]


def _write(state: State, given: Mapping[str, Any]) -> tuple[State, str]:
    path = given["path"].strip().removeprefix("./").removeprefix("/")
    if not path:
        raise ToolError("path must not be empty")
    return _written(state, path, given["content"]), f"Wrote {path}."


def _replace(state: State, given: Mapping[str, Any]) -> tuple[State, str]:
    path, old = _file(state, given), given["old"]
    text = state["files"][path]
    if not old or old not in text:
        raise ToolError(f"{path} does not have the text {old!r}")
    count = text.count(old)
    _check_size(len(text) + count * (len(given["new"]) - len(old)))  # before a text of that size exists
    return _written(state, path, text.replace(old, given["new"])), f"Replaced {count} times in {path}."


def _delete(state: State, given: Mapping[str, Any]) -> tuple[State, str]:
    path = _file(state, given)
    files = {other: text for other, text in state["files"].items() if other != path}
    return state | {"files": files}, f"Deleted {path}."


_PATH = Parameter("path", "string", "The path of the file.")
_TOOLS = (
    Tool(
        "search_files",
        "Return all lines of all files that contain a text.",
        (Parameter("text", "string", "The text."),),
        _search,
    ),
    Tool("read_file", "Return the content of a file.", (_PATH,), _read),
    Tool(
        "write_file",
        "Create a file, or replace its whole content.",
        (_PATH, Parameter("content", "string", "The whole content.")),
        _write,
    ),
    Tool(
        "replace_text",
        "Replace each occurrence of a text in a file.",
        (_PATH, Parameter("old", "string", "The text to replace."), Parameter("new", "string", "The new text.")),
        _replace,
    ),
    Tool("delete_file", "Delete a file.", (_PATH,), _delete),
)


def _task(request: str, files: Mapping[str, str], after: Mapping[str, str], *reference: ToolCall) -> GeneratedTask:
    return GeneratedTask(request, {"files": dict(files)}, {"files": dict(after)}, reference)


def _settings(draw: ProblemRandom, keys: Sequence[str]) -> str:
    return "".join(f"{key} = {draw.between(12, 90)}\n" for key in keys)


def _config(draw: ProblemRandom) -> GeneratedTask:
    names = draw.some(_SECTIONS, 2)
    key, *others = draw.some(_KEYS, 4)
    before, more = draw.between(12, 80), draw.between(5, 40)
    lines = draw.some([f"{key} = {before}\n", *(f"{one} = {draw.between(12, 90)}\n" for one in others)], 4)
    path = f"config/{names[0]}.ini"
    files = {path: "".join(lines), f"config/{names[1]}.ini": _settings(draw, [key, *others])}
    old, new = f"{key} = {before}", f"{key} = {before + more}"
    request = f"Raise the value of {key} in {path} by {more}."
    after = files | {path: files[path].replace(old, new)}
    return _task(request, files, after, call("read_file", path=path), call("replace_text", path=path, old=old, new=new))


def _renaming(draw: ProblemRandom) -> GeneratedTask:
    verbs, noun = draw.some(_VERBS, 3), draw.pick(_NOUNS)
    old, new, unrelated = (f"{verb}_{noun}" for verb in verbs)
    paths = [f"src/{name}.py" for name in draw.some(_MODULES, 3)]
    using = draw.some(paths, 2)
    files = {path: f"result = {old if path in using else unrelated}({draw.between(2, 99)})\n" for path in paths}
    files[using[0]] += f"print({old}({draw.between(2, 99)}))\n"
    request = f"Rename the function {old} to {new} in every file that uses it."
    after = {path: text.replace(old, new) for path, text in files.items()}
    changes = (call("replace_text", path=path, old=old, new=new) for path in paths if path in using)
    return _task(request, files, after, call("search_files", text=old), *changes)


def _moving(draw: ProblemRandom) -> GeneratedTask:
    origin, target = draw.some(_FOLDERS, 2)
    names = [f"{draw.pick(PEOPLE).lower()}-{draw.between(10, 99)}.txt" for _ in range(2)]
    path, new_path = f"{origin}/{names[0]}", f"{target}/{names[0]}"
    bought = [f"{draw.pick(KEPT).count(draw.between(2, 30))}\n" for _ in range(2)]
    files = {path: "".join(bought), f"{target}/other-{names[1]}": f"{draw.pick(BAKED).count(draw.between(2, 30))}\n"}
    request = f"Move the file {path} to {new_path}. The content stays as it is."
    after = {other: text for other, text in files.items() if other != path} | {new_path: files[path]}
    reference = (
        call("read_file", path=path),
        call("write_file", path=new_path, content=files[path]),
        call("delete_file", path=path),
    )
    return _task(request, files, after, *reference)


def _chores(draw: ProblemRandom) -> GeneratedTask:
    person, other = draw.some(PEOPLE, 2)
    chores = draw.some(_CHORES, 4)
    names = draw.some([person, person, other, other], 4)
    lines = [f"[ ] {name}: {chore}" for name, chore in zip(names, chores, strict=True)]
    done = [line for line, name in zip(lines, names, strict=True) if name == person]
    files = {"todo.txt": "\n".join(lines) + "\n"}
    after = "".join(f"{line.replace('[ ]', '[x]') if line in done else line}\n" for line in lines)
    request = (
        f"{person} has done everything. In todo.txt, replace [ ] by [x] in the lines of {person}, and in no other."
    )
    changes = (call("replace_text", path="todo.txt", old=line, new=line.replace("[ ]", "[x]")) for line in done)
    return _task(request, files, {"todo.txt": after}, call("read_file", path="todo.txt"), *changes)


def _outcome(state: State) -> object:
    """Return the texts without white space at the ends of lines and of the file."""
    return {path: [line.rstrip() for line in text.rstrip().split("\n")] for path, text in state["files"].items()}


SANDBOX = TaskKind(_TOOLS, (_config, _renaming, _moving, _chores), _outcome)
