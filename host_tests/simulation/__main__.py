"""python -m host_tests.simulation [--seed S] [--count N] [--story]: run seeds, print the sums.

A seed that breaks a promise prints its story; the exit code is 1 then. `--story` prints it in any
case (of one seed).
"""

from __future__ import annotations

import argparse
import os
import sys
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
    with ProcessPoolExecutor(jobs or os.cpu_count()) as pool:
        yield from pool.map(run, seeds, chunksize=4)


def summary(outcomes: list[Outcome]) -> str:
    total: Counter[str] = Counter()
    for outcome in outcomes:
        total.update(outcome.counts)
    lines = [f"{len(outcomes):>10} seeds", f"{sum(o.hours for o in outcomes):>10.0f} hours"]
    lines += [f"{count:>10} {what}" for what, count in sorted(total.items())]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m host_tests.simulation")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=None)
    parser.add_argument("--story", action="store_true")
    args = parser.parse_args()
    if args.count == 1:
        outcomes = [run(args.seed, args.story)]
    else:
        outcomes = list(run_all(range(args.seed, args.seed + args.count), args.jobs))
    broken = [o for o in outcomes if o.promise is not None]
    for outcome in broken[:3]:
        print(outcome.story)
        print()
    if args.story and not broken:
        print(outcomes[0].story)
    print(summary(outcomes))
    for outcome in broken:
        print(f"seed {outcome.seed}: {outcome.why}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
