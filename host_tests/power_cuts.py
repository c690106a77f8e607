"""Every power cut of a recorded life: python -m host_tests.power_cuts [--stride N] [--jobs N]

Plays `vm_cuts.py` in the MicroPython VM, side by side, and sums up. The exit code is 1 when a
promise is broken. `make soak` runs all cuts, the suite one of some.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from tools import build, deploy, paths

HEAP = "6m"


@dataclass
class Outcome:
    """What all cuts came to."""

    broken: list[dict[str, Any]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    steps: Counter[str] = field(default_factory=Counter)
    operations: int = 0
    durable: int = 0

    def __str__(self) -> str:
        rows = [
            (self.operations, "programs and erases of the flash in the recorded life"),
            (self.counts["cuts"], "power cuts, clean and torn"),
            (self.counts["mounts failed"], "mounts that failed"),
            (self.counts["torn tails"], "torn tails that LittleFS let through"),
            (sum("P2" in row["broken"] for row in self.broken), "cuts that lost a record"),
            (len(self.broken), "cuts that broke a promise"),
            (self.durable, "records were durable at the end of the life"),
            (self.counts["records"], "records held against the gateway's, one by one"),
            (self.counts["resumed"], "sessions resumed after the cut"),
            (self.counts["held"], "reservations found held"),
            (self.counts["used"], "... and used afterwards"),
            (self.counts["expired"], "... or left to expire"),
        ]
        text = "".join(f"{count:>10,} {what}\n" for count, what in rows)
        return text + "".join(f"{n:>10,} cuts in {step}\n" for step, n in self.steps.items())


def run(
    stride: int = 1, jobs: int | None = None, torn: tuple[str, ...] = ("half",), **more: Any
) -> Outcome:
    """Cut at every `stride`-th operation; `more` goes to the VM (`mutation`, `steps`)."""
    jobs = jobs or min(os.cpu_count() or 1, 4)
    meters = {"eastron_sdm630_v2": build.meter_file("eastron_sdm630_v2").decode()}
    host: dict[str, Any] = {
        "meters": meters,
        "door": (paths.FIRMWARE / "start.py").read_text(),
        "deploy": {
            "slot": deploy.WRITE_SLOT % "b",
            "rename": deploy.RENAME % ([("/config.json.tmp", "/config.json")],),
        },
        "torn": list(torn),
        **more,
    }

    def one(job: int) -> str:
        asked = host | {"stride": stride * jobs, "offset": stride * job}
        done = subprocess.run(
            [paths.VM, "-X", f"heapsize={HEAP}", paths.ROOT / "host_tests" / "vm_cuts.py"],
            env={"MICROPYPATH": f"{paths.FIRMWARE}:{paths.ROOT / 'host_tests'}"},
            input=json.dumps(asked),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode or "tally" not in done.stdout:
            raise RuntimeError(f"vm_cuts.py: {done.stdout[-2000:]}{done.stderr[-2000:]}")
        return done.stdout

    outcome = Outcome()
    with ThreadPoolExecutor(jobs) as pool:
        for output in pool.map(one, range(jobs)):
            for line in output.splitlines():
                row = json.loads(line)
                if "broken" in row:
                    outcome.broken.append(row)
                    continue
                tally = row["tally"]
                outcome.steps.update(tally.pop("steps"))
                outcome.operations = tally.pop("operations")
                outcome.durable = tally.pop("durable")
                outcome.counts.update(tally)
    return outcome


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m host_tests.power_cuts")
    parser.add_argument("--stride", type=int, default=1, help="cut at every so many operations")
    parser.add_argument("--jobs", type=int, default=None)
    args = parser.parse_args()
    outcome = run(args.stride, args.jobs, ("half", "bits"))
    for row in outcome.broken[:20]:
        print(json.dumps(row))
    print(outcome, end="")
    return 1 if outcome.broken else 0


if __name__ == "__main__":
    sys.exit(main())
