"""Runs seeds, alone or side by side, and sums up what happened in them."""

from __future__ import annotations

import multiprocessing
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field

from .world import Broken, World


@dataclass
class Outcome:
    seed: int
    hours: float
    promise: str | None = None
    why: str = ""
    story: str = ""
    counts: Counter[str] = field(default_factory=Counter)


def run(seed: int, story: bool = False) -> Outcome:
    """Live through one seed."""
    world = World(seed)
    outcome = Outcome(seed, 0)
    try:
        world.run()
    except Broken as e:
        outcome.promise, outcome.why = e.promise, str(e)
    outcome.hours = world.now / 3_600_000
    outcome.counts = world.counts
    if story or outcome.promise is not None:
        outcome.story = world.tell()
    return outcome


def run_all(seeds: Iterable[int], jobs: int | None = None) -> Iterator[Outcome]:
    """Live through seeds side by side, in their order."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs or os.cpu_count(), mp_context=context) as pool:
        yield from pool.map(run, seeds, chunksize=4)


def summary(outcomes: list[Outcome]) -> str:
    total: Counter[str] = Counter()
    for outcome in outcomes:
        total.update(outcome.counts)
    lines = [f"{len(outcomes):>10} seeds", f"{sum(o.hours for o in outcomes):>10.0f} hours"]
    lines += [f"{count:>10} {what}" for what, count in sorted(total.items())]
    return "\n".join(lines)
