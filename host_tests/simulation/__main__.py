"""python -m host_tests.simulation [--seed S] [--count N] [--story]: run seeds, print the sums.

A seed that breaks a promise prints its story; the exit code is 1 then. `--story` prints it in any
case (of one seed).
"""

from __future__ import annotations

import argparse
import sys

from .runner import run, run_all, summary


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
