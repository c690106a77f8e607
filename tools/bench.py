"""`make bench`: what the agent costs in flash erases and bytes on the wire, beside its budgets.

Each scenario is played on the bench of `tools.rig`: the deployed firmware in the 32-bit VM, a
scripted gateway, time that skips ahead for everybody alike. Erases, programs and syncs are counted
at the block device, bytes on the wire by a relay between the board and the broker: what goes
through the socket, up and down together, MQTT or HTTP and TLS 1.2 with it, TCP's and IP's own
headers without. A connection stands already: what a TLS handshake costs is told apart.

Counts, not seconds, and never exactly repeatable: LittleFS moves blocks about, and the phase of
the quarter hour decides whether a session of an hour has four cuts or five. Exact are what a poll
of a meter costs (`tools.bench_poll`), a record's replay at boot (`tools.bench_replay`), the heap
of a message (`tools.bench_message`), and what a life costs the flash (`tools.bench_flash`).

"Whole Session objects" is what an OCPI Session in place of each picture would be, in the same
envelope and unanswered: the records would come on top.

Limits: nothing is lost on this network. What is not measured is listed at the end.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from typing import Any

from tools import bench_flash, bench_message, bench_poll, bench_replay
from tools.build import BuildError
from tools.gateway import ocpi
from tools.relay import handshake
from tools.rig import LOAD_W, STATION, TOKEN, UNIX_MS, Rig, RigError
from tools.stage import StageError
from tools.virtual_board.vm import VmError

HOUR_S = 3600
PLAIN, SECURE = "mqtt", "mqtts"
SECURE_HEAP = "112k"  # what a plain ESP32 ends at: TLS takes more than the plain link
MAC_AND_TOPIC = 65 + 4 + len(f"wattlock/1/{STATION}/up")  # what wraps a message in MQTT
TLS_RECORD = 29  # header, nonce and tag of AES-GCM in TLS 1.2
BUDGETS = {  # erases, bytes on the wire; None: no budget
    "boot, online, two minutes idle": (None, None),
    "an idle hour": (None, None),
    "an idle day": (12, None),
    "a card session of one hour": (12, 30_000),
    "a reserved remote session of one hour": (16, 30_000),
    "the card session over TLS": (12, 30_000),
    "the reserved session over TLS": (16, 30_000),
    "the card session over HTTP": (12, None),
    "the card session over HTTPS": (12, None),
}
NOT_MEASURED = (
    "the longest stall of the loop but for the flash's part (budget: 50 ms without a sync)",
    "a day of charging within 96 KiB without growth: 22 minutes, done once (firmware/README.md)",
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
    rig.settle()
    flash = rig.board.flash_stat()
    return {
        **{name: flash[name] for name in ("erases", "programs", "program_bytes", "syncs")},
        "wire_bytes": rig.relay.bytes,
        "messages": len(rig.gateway.headers),
        "records": len(rig.gateway.records),
    }


def run(play: Callable[[Rig], None], link: str = PLAIN) -> dict[str, int]:
    """What a scenario costs, played on a board that has come online."""
    heap = "96k" if link == PLAIN else SECURE_HEAP
    with Rig(heap=heap, link=link, live_s=60) as rig:
        rig.online()
        before = counters(rig)
        connections = rig.relay.connections
        play(rig)
        after = counters(rig)
        if rig.board.boot() != 1:
            raise RigError("the board restarted: its counts mean nothing")
        if link in (PLAIN, SECURE) and rig.relay.connections != connections:
            raise RigError("the link was built anew: its counts mean nothing")
        found = {name: after[name] - before[name] for name in after}
        if link == SECURE:
            ends = rig.relay.first_up, rig.relay.first_down
            found["handshake_bytes"] = sum(map(handshake, ends))
    return found


def boot() -> dict[str, int]:
    """From power on, the first segment of the journal included."""
    with Rig() as rig:
        rig.online()
        rig.pass_time(120)
        return counters(rig)


def session_object(minute: int) -> dict[str, Any]:
    """An OCPI 2.2.1 Session (8.3.1) after so many minutes, with what it must have and no more."""

    def at(minutes: int) -> str:
        return ocpi.format_datetime(UNIX_MS + minutes * 60_000)

    def energy(minutes: int) -> Any:
        return ocpi.kwh(LOAD_W * minutes // 60)

    return {
        "country_code": "NL",
        "party_id": "BEC",
        "id": "5" * 32,
        "start_date_time": at(0),
        "kwh": energy(minute),
        "cdr_token": TOKEN | {"contract_id": "NL-EMS-C12345678-X"},
        "auth_method": "WHITELIST",
        "location_id": "LOC1",
        "evse_uid": "EVSE-1",
        "connector_id": "1",
        "currency": "EUR",
        "charging_periods": [
            {
                "start_date_time": at(begin),
                "dimensions": [{"type": "ENERGY", "volume": energy(min(15, minute - begin))}],
            }
            for begin in range(0, minute, 15)
        ],
        "status": "ACTIVE",
        "last_updated": at(minute),
    }


def whole_sessions() -> dict[str, int]:
    """Bytes of an hour with a whole Session each minute: plain, and over TLS."""
    sizes = [len(ocpi.dumps(session_object(n))) + MAC_AND_TOPIC for n in range(1, 61)]
    return {"plain": sum(sizes), "tls": sum(sizes) + len(sizes) * TLS_RECORD}


def measure(day: bool) -> dict[str, dict[str, int] | str]:
    plays: dict[str, Callable[[], dict[str, int]]] = {
        "boot, online, two minutes idle": boot,
        "an idle hour": lambda: run(idle(HOUR_S)),
        "a card session of one hour": lambda: run(card_session),
        "a reserved remote session of one hour": lambda: run(reserved_session),
        "the card session over TLS": lambda: run(card_session, SECURE),
        "the reserved session over TLS": lambda: run(reserved_session, SECURE),
        "the card session over HTTP": lambda: run(card_session, "http"),
        "the card session over HTTPS": lambda: run(card_session, "https"),
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
    whole = whole_sessions()
    text += f"Whole Session objects in its place: {whole['plain']:,} bytes an hour,"
    text += f" {whole['tls']:,} over TLS, without the records.\n"
    for counts in found.values():
        if isinstance(counts, dict) and "handshake_bytes" in counts:
            text += f"A TLS handshake: {counts['handshake_bytes']:,} bytes, not in the above.\n"
            break
    text += "\nNot measured:\n"
    return text + "".join(f"- {what}\n" for what in NOT_MEASURED)


def main() -> int:
    parser = argparse.ArgumentParser(prog="make bench")
    parser.add_argument("--day", action="store_true", help="an idle day too; takes minutes")
    parser.add_argument("--json", action="store_true", help="machine-readable")
    args = parser.parse_args()
    polls: dict[str, dict[str, Any]] = {}
    replay: dict[str, int] = {}
    heap: dict[str, dict[str, int]] = {}
    try:
        polls = bench_poll.measure()
        replay = bench_replay.measure()
        heap = bench_message.measure()
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
        exact = {"polls": polls, "replay": replay, "messages": heap, "flash": flash | life}
        exact["whole_sessions"] = whole_sessions()
        print(json.dumps(found | exact, indent=1))
        return 0
    print(table(found), end="")
    if flash:
        print("\n" + bench_flash.table(flash), end="")
    if polls:
        print("\n" + bench_poll.table(polls), end="")
    if replay:
        print(bench_replay.table(replay), end="")
    if heap:
        print(bench_message.table(heap), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
