"""`make bench`: what the agent costs in flash erases and bytes on the wire, beside its budgets.

Each scenario is played on the bench of `tools.rig`: the deployed firmware in the 32-bit VM, a
scripted gateway, time that skips ahead for everybody alike. Erases, programs and syncs are counted
at the block device, bytes by the link's own counters as the health report gives them (MQTT with
its headers, without TCP's; up and down together).

Counts, not seconds, and never exactly repeatable: LittleFS moves blocks about, and the phase of
the quarter hour decides whether a session of an hour has four cuts or five. Exact are what a poll
of a meter costs (`tools.bench_poll`), a record's replay at boot (`tools.bench_replay`), and what a
life costs the flash (`tools.bench_flash`).

Limits: no TLS, and nothing is lost on this network. What is not measured is listed at the end.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from typing import Any

from tools import bench_flash, bench_poll, bench_replay
from tools.build import BuildError
from tools.rig import LOAD_W, TOKEN, Rig, RigError
from tools.stage import StageError
from tools.virtual_board.vm import VmError

HOUR_S = 3600
BUDGETS = {  # erases, bytes on the wire; None: no budget
    "boot, online, two minutes idle": (None, None),
    "an idle hour": (None, None),
    "an idle day": (12, None),
    "a card session of one hour": (12, 30_000),
    "a reserved remote session of one hour": (16, 30_000),
}
NOT_MEASURED = (
    "the longest stall of the loop but for the flash's part (budget: 50 ms without a sync)",
    "a day of charging within 96 KiB without growth",
    "a frozen build",
)


def idle(seconds: int) -> Callable[[Rig], None]:
    return lambda rig: rig.pass_time(seconds)


def card_session(rig: Rig) -> None:
    rig.plug("C")
    rig.show_card()
    rig.charging()
    rig.pass_time(HOUR_S)
    rig.show_card()
    rig.stopped()
    rig.plug("A")


def reserved_session(rig: Rig) -> None:
    data = {"evse": 1, "token": TOKEN}
    expiry_ms = rig.gateway.unix_ms() + 2 * HOUR_S * 1000
    rig.command("RESERVE_NOW", {**data, "reservation_id": "R1", "expiry_ms": expiry_ms})
    rig.plug("C")
    rig.command("START_SESSION", data)
    rig.charging()
    rig.pass_time(HOUR_S)
    (session_id,) = {r["session_id"] for r in rig.gateway.records if r["t"] == "start"}
    rig.command("STOP_SESSION", {"session_id": session_id})
    rig.stopped()
    rig.plug("A")


def counters(rig: Rig) -> dict[str, int]:
    health = rig.health()
    flash = rig.board.flash_stat()
    return {
        **{name: flash[name] for name in ("erases", "programs", "program_bytes", "syncs")},
        "wire_bytes": health["bytes_out"] + health["bytes_in"],
        "messages": len(rig.gateway.headers),
        "records": len(rig.gateway.records),
    }


def run(play: Callable[[Rig], None]) -> dict[str, int]:
    """What a scenario costs, played on a board that has come online."""
    with Rig() as rig:
        rig.online()
        before = counters(rig)
        play(rig)
        after = counters(rig)
        if rig.board.boot() != 1:
            raise RigError("the board restarted: its counts mean nothing")
    return {name: after[name] - before[name] for name in after}


def boot() -> dict[str, int]:
    """From power on, the first segment of the journal included."""
    with Rig() as rig:
        rig.online()
        rig.pass_time(120)
        return counters(rig)


def measure(day: bool) -> dict[str, dict[str, int] | str]:
    plays: dict[str, Callable[[], dict[str, int]]] = {
        "boot, online, two minutes idle": boot,
        "an idle hour": lambda: run(idle(HOUR_S)),
        "a card session of one hour": lambda: run(card_session),
        "a reserved remote session of one hour": lambda: run(reserved_session),
    }
    if day:
        plays["an idle day"] = lambda: run(idle(24 * HOUR_S))
    found: dict[str, dict[str, int] | str] = {}
    for name, play in plays.items():
        print(f"{name} ...", file=sys.stderr, flush=True)
        try:
            found[name] = play()
        except (RigError, StageError) as error:
            found[name] = str(error)
    return found


def beside(value: int, budget: int | None) -> str:
    if budget is None:
        return f"{value:,}"
    return f"{value:,} of {budget:,}{' OVER' if value > budget else ''}"


def table(found: dict[str, dict[str, int] | str]) -> str:
    text = f"{'':40} {'erases':>13} {'programmed':>11} {'syncs':>6} {'on the wire':>21}"
    text += f" {'messages':>9} {'records':>8}\n"
    for name, counts in found.items():
        if isinstance(counts, str):
            text += f"{name:40} not measured: {counts}\n"
            continue
        erases, wire = BUDGETS[name]
        text += f"{name:40} {beside(counts['erases'], erases):>13}"
        text += f" {counts['program_bytes']:>9,} B {counts['syncs']:>6}"
        text += f" {beside(counts['wire_bytes'], wire):>21}"
        text += f" {counts['messages']:>9} {counts['records']:>8}\n"
    text += f"\nSessions charge {LOAD_W / 1000:g} kW, a picture is sent every 60 s.\n"
    text += "\nNot measured:\n"
    return text + "".join(f"- {what}\n" for what in NOT_MEASURED)


def main() -> int:
    parser = argparse.ArgumentParser(prog="make bench")
    parser.add_argument("--day", action="store_true", help="an idle day too; takes minutes")
    parser.add_argument("--json", action="store_true", help="machine-readable")
    args = parser.parse_args()
    polls: dict[str, dict[str, Any]] = {}
    replay: dict[str, int] = {}
    try:
        polls = bench_poll.measure()
        replay = bench_replay.measure()
    except bench_poll.BenchError as error:
        print(f"bench: a poll is not measured: {error}", file=sys.stderr)
    flash: dict[str, dict[str, Any]] = {}
    try:
        flash = bench_flash.measure()
    except bench_flash.FlashBenchError as error:
        print(f"bench: the flash is not measured: {error}", file=sys.stderr)
    try:
        found: dict[str, Any] = measure(args.day)
    except (BuildError, VmError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    if args.json:
        life = {"years": bench_flash.lives(flash)} if flash else {}
        exact = {"polls": polls, "replay": replay, "flash": flash | life}
        print(json.dumps(found | exact, indent=1))
        return 0
    print(table(found), end="")
    if flash:
        print("\n" + bench_flash.table(flash), end="")
    if polls:
        print("\n" + bench_poll.table(polls), end="")
    if replay:
        print(bench_replay.table(replay), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
