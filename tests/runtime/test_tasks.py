"""Background tasks: failures are logged, finite tasks are drained, and all tasks end at close."""

from __future__ import annotations

import asyncio
import time

from structlog.testing import capture_logs

from gateway.runtime.tasks import BackgroundTasks


async def test_a_failure_is_logged_with_the_tasks_name() -> None:
    """No other code awaits the task."""

    async def fails() -> None:
        raise LookupError("why")

    tasks = BackgroundTasks()
    with capture_logs() as logs:
        await asyncio.wait([tasks.spawn("receipt", fails()), tasks.keep("loop", fails())])
        await asyncio.sleep(0)
    assert sorted((line["event"], line["task"], str(line["exc_info"])) for line in logs) == [
        ("task_failed", "loop", "why"),
        ("task_failed", "receipt", "why"),
    ]


async def test_draining_waits_for_work_and_for_the_work_it_starts() -> None:
    """Loops are excluded, since they never end."""
    done: list[str] = []
    tasks = BackgroundTasks()

    async def second() -> None:
        await asyncio.sleep(0.02)
        done.append("second")

    async def first() -> None:
        await asyncio.sleep(0.02)
        tasks.spawn("second", second())
        done.append("first")

    loop = tasks.keep("loop", asyncio.Event().wait())
    tasks.spawn("first", first())
    assert await tasks.drain(5) == 0
    assert done == ["first", "second"]
    assert not loop.done()
    await tasks.close()


async def test_draining_gives_up_in_time_and_says_how_many_are_left() -> None:
    """Late tasks continue until `close`."""
    tasks = BackgroundTasks()
    late = [tasks.spawn(f"late-{n}", asyncio.Event().wait()) for n in range(2)]
    began = time.monotonic()
    assert await tasks.drain(0.05) == 2
    assert 0.04 <= time.monotonic() - began < 1
    assert not any(task.done() for task in late)
    await tasks.close()


async def test_closing_cancels_everything_and_waits_for_its_end() -> None:
    """Tasks and loops that react differently to cancellation. A cancellation is no failure."""
    ended: list[str] = []
    tasks = BackgroundTasks()

    async def runs(name: str) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.01)
            ended.append(name)

    started = [tasks.spawn("work", runs("work")), tasks.keep("loop", runs("loop"))]
    await asyncio.sleep(0)
    with capture_logs() as logs:
        await tasks.close()
    assert sorted(ended) == ["loop", "work"]
    assert all(task.cancelled() for task in started)
    assert logs == []


async def test_closing_repeats_a_cancellation_that_was_lost() -> None:
    """A library swallowed the cancellation, so the loop continued and would have blocked the shutdown."""
    tasks = BackgroundTasks()

    async def swallows_one() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await asyncio.Event().wait()

    loop = tasks.keep("loop", swallows_one())
    await asyncio.sleep(0)
    await asyncio.wait_for(tasks.close(interval_s=0.02), 2)
    assert loop.cancelled()


async def test_closing_names_what_cannot_be_ended() -> None:
    """The process ends, and the log names the stuck task."""
    tasks, over = BackgroundTasks(), asyncio.Event()

    async def stubborn() -> None:
        while not over.is_set():
            try:
                await over.wait()
            except asyncio.CancelledError:
                continue

    task = tasks.keep("stubborn", stubborn())
    await asyncio.sleep(0)
    with capture_logs() as logs:
        await asyncio.wait_for(tasks.close(attempts=3, interval_s=0.01), 2)
    assert logs == [{"event": "task_stuck", "task": "stubborn", "log_level": "error"}]
    over.set()
    await task


async def test_tasks_that_ended_are_forgotten() -> None:
    """References are kept only while a task runs."""
    tasks = BackgroundTasks()
    await asyncio.wait([tasks.spawn("work", asyncio.sleep(0))])
    await asyncio.sleep(0)
    assert await tasks.drain(0) == 0
