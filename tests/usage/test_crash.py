"""A worker that is killed during a transaction and restarted writes each receipt exactly once."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from gateway.usage.database import WriteResult
from tests.usage.databases import check_sums, database, entries, held, opened, receipts_of_a_day
from tests.usage.test_database import sum_of, total

COUNT, BATCH, KILLS = 1_000, 25, 3

if TYPE_CHECKING:
    from collections.abc import Iterator

_ROOT = Path(__file__).parents[2]


def write_all(address: str, seed: int) -> None:
    """Write the receipts of a day in batches, in a random order."""
    sent = entries(receipts_of_a_day(COUNT))
    random.Random(seed).shuffle(sent)
    with opened(address) as engine:
        engine.open()
        print("ready", flush=True)
        for start in range(0, COUNT, BATCH):
            database(engine).add(sent[start : start + BATCH])


def hang_in_a_transaction(address: str) -> None:
    """Insert receipts, and hang before writing their sums."""
    from gateway.usage import database as module

    def hang(*_: object) -> None:
        print("ready", flush=True)
        time.sleep(60)

    module.add_sums = hang
    with opened(address) as engine:
        database(engine).add(entries(receipts_of_a_day(COUNT)))


@contextmanager
def killed(*calls: str) -> Iterator[None]:
    """Run calls in separate processes. The block begins when all are ready, and kills them at its end."""
    with ExitStack() as stack:
        processes = []
        for call in calls:
            code = f"from tests.usage.test_crash import *; {call}"
            process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=_ROOT)
            processes.append(stack.enter_context(process))
            stack.callback(process.kill)
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        yield


@pytest.mark.long
@pytest.mark.timeout(180)
def test_two_workers_are_killed_at_any_moment(address: str) -> None:
    receipts = receipts_of_a_day(COUNT)
    dice = random.Random(5)
    for kill in range(KILLS):
        with killed(*(f"write_all({address!r}, {seed})" for seed in (kill, -kill - 1))):
            time.sleep(dice.uniform(0, 0.3))
        with opened(address) as engine:
            assert total(engine).requests == len(held(engine))
            check_sums(engine)
    write_all(address, COUNT)
    with opened(address) as engine:
        assert {one.id: one for one in held(engine)} == {one.id: one for one in receipts}
        assert total(engine) == sum_of(*receipts)
        check_sums(engine)


def test_a_transaction_that_is_cut_off_leaves_nothing(address: str) -> None:
    receipts = receipts_of_a_day(COUNT)
    with opened(address) as engine:
        database(engine).add(entries(receipts[:500]))
        with killed(f"hang_in_a_transaction({address!r})"):
            assert len(held(engine)) == 500
        assert len(held(engine)) == 500
        assert database(engine).add(entries(receipts)) == WriteResult(inserted=COUNT - 500, known=500)
        assert total(engine) == sum_of(*receipts)
        check_sums(engine)
