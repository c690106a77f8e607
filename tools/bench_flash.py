"""What the agent's life costs the flash, beside the naive way, and the years that follow.

Plays `host_tests/vm_wear.py` in the MicroPython VM: the agent on real LittleFS over a block device
that counts, virtual time. Exact for a given firmware, unlike the counts that `tools.bench` takes
from the whole virtual board.

Years: a NOR block bears `CYCLES` erases. LittleFS levels dynamically: each new block is the next
free one, and a directory's pair of blocks moves on after 100 erases, so that over time all blocks
that are free or change share the erases; files that never change keep their blocks, which do not
take part. How uneven that is was counted (`most` beside the mean), and the most worn block is what
dies first. Limits: bad blocks, temperature and the erases of an application update are not in it.
"""

from __future__ import annotations

import json
import subprocess
from typing import Any

from tools import build, paths

CYCLES = 100_000
SESSIONS = 8  # a busy day
VFS_BLOCKS = 512
BUDGETS = {
    "an idle day": 12,
    "a card session of one hour": 12,
    "a reserved remote session of one hour": 16,
}
STALL_MS = 150  # of a turn with a sync
NAIVE = "naive, a sample every 10 s"
STATIC_BLOCKS = 340  # of the run that counts the wear: the fewer move, the sooner it shows
WEAR_SYNCS = 3000


class FlashBenchError(Exception):
    """The VM did not do its part. Caught by `make bench`."""


def measure(wear_syncs: int = WEAR_SYNCS) -> dict[str, dict[str, Any]]:
    """What each scenario of vm_wear.py counted, by its name; without syncs to wear the flash with,
    all but the wear."""
    host = {
        "meters": {"eastron_sdm630_v2": build.meter_file("eastron_sdm630_v2").decode()},
        "door": (paths.FIRMWARE / "start.py").read_text(),
        "static_blocks": STATIC_BLOCKS,
        "syncs": wear_syncs,
    }
    if not paths.VM.exists():
        raise FlashBenchError(f"no MicroPython VM at {paths.VM}: run `make setup`")
    done = subprocess.run(
        [paths.VM, "-X", "heapsize=6m", paths.ROOT / "host_tests" / "vm_wear.py"],
        env={"MICROPYPATH": f"{paths.FIRMWARE}:{paths.ROOT / 'host_tests'}"},
        input=json.dumps(host),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise FlashBenchError(done.stdout[-500:] + done.stderr[-500:])
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    return {row.pop("name"): row for row in rows}


def years(erases_a_day: float, blocks: int, uneven: float) -> float:
    """Until the most worn of `blocks` that share the erases has had CYCLES of them."""
    return CYCLES / (erases_a_day * 365 / blocks * uneven)


def lives(found: dict[str, dict[str, Any]]) -> dict[str, float]:
    """What the years are made of, and the years."""
    wear = found["wear"]
    uneven = wear["most"] / (wear["erases"] / wear["blocks"])
    config = {"evses": [{"meter": "eastron_sdm630_v2"}]}
    made = build.build("esp32", config)
    files = [*made.root.values(), *made.slot.values(), *made.slot.values()]  # two slots
    static = sum(-(-len(data) // 4096) for data in files)
    moving = VFS_BLOCKS - static
    ours = found["a card session of one hour"]["erases"] * SESSIONS
    ours += found["an idle day"]["erases"]
    naive = found[NAIVE]["erases"] * 24
    return {
        "erases_a_day": ours,
        "naive_erases_a_day": naive,
        "static_blocks": static,
        "moving_blocks": moving,
        "uneven": round(uneven, 1),
        "years": years(ours, moving, uneven),
        "years_on_one_block": CYCLES / (ours * 365),
        "naive_years": years(naive, moving, uneven),
        "naive_days_on_one_block": CYCLES / naive,
    }


def table(found: dict[str, dict[str, Any]]) -> str:
    text = f"{'flash, counted at the block device':42} {'erases':>12} {'programmed':>11}"
    text += f" {'syncs':>6} {'longest stall':>14}\n"
    for name, row in found.items():
        if name == "wear":
            continue
        erases = f"{row['erases']}"
        if name in BUDGETS:
            erases += f" of {BUDGETS[name]}{' OVER' if row['erases'] > BUDGETS[name] else ''}"
        stall = ""
        longest = row.get("longest_ms", row["busy_ms"] if "segment" in name else None)
        if longest is not None:
            stall = f"{longest} of {STALL_MS} ms{' OVER' if longest > STALL_MS else ''}"
        text += f"{name:42} {erases:>12} {row['program_bytes']:>9,} B {row['syncs']:>6}"
        text += f" {stall:>14}\n"
    life = lives(found)
    return text + (
        f"\n{SESSIONS} sessions a day: {life['erases_a_day']} erases, shared by "
        f"{life['moving_blocks']} of {VFS_BLOCKS} blocks; the most worn has "
        f"{life['uneven']} times the mean.\n"
        f"That is {life['years']:.0f} years until {CYCLES:,} erases; "
        f"{life['years_on_one_block']:.1f} if nothing were levelled.\nNaive, around the clock: "
        f"{life['naive_erases_a_day']} erases a day, {life['naive_years']:.1f} years, "
        f"or {life['naive_days_on_one_block']:.0f} days.\n"
    )
