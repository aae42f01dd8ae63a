"""Read process trees, CPU time and memory from /proc. Linux only."""

from __future__ import annotations

import os
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def cpu_s(pid: int) -> float:
    """Return the CPU seconds (user and system) of a process; 0.0 if it has ended."""
    fields = _stat(pid)
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S if fields else 0.0


def busy_s() -> float:
    """Return the busy CPU seconds of the machine: all except idle and I/O wait."""
    fields = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return (sum(fields) - fields[3] - fields[4]) / _TICKS_PER_S


def ours_s() -> float:
    """Return the CPU seconds of this process, its descendants and its ended children."""
    return sum(cpu_s(pid) for pid in tree(os.getpid())) + sum(os.times()[2:4])


def rss_bytes(pid: int) -> int:
    """Return the resident memory of a process; 0 if it has ended."""
    return _status(pid, "VmRSS:") * 1024


def threads(pid: int) -> int:
    """Return the number of threads of a process; 0 if it has ended."""
    return _status(pid, "Threads:")


def open_files(pid: int) -> int:
    """Return the number of open files and connections of a process; 0 if it has ended."""
    try:
        return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return 0


def _status(pid: int, name: str) -> int:
    """Return a number from /proc/PID/status by its name; 0 if the process has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(name)), 0)


def command(pid: int) -> str:
    """Return the command line of a process, or "" if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def tree(root: int) -> list[int]:
    """Return `root` and its descendants, parents first."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := _stat(int(entry.name))):
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    found = [root]
    for pid in found:  # the list grows during the iteration
        found.extend(children.get(pid, ()))
    return found


def _stat(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat from the state on. The name before them may contain spaces and brackets."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
