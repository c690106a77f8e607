"""`make demo`: the whole story on the virtual board, told as it happens and checked at the end.

A driver reserves over OCPI; another driver's card is refused at the board; the power goes and the
place is still kept; the right card starts; the power goes in the middle of charging and the
session goes on under its id; the eMSP stops it and gets the CDR. What the eMSP holds must equal,
to the watt-hour, what the meter counted.

Real: the firmware in a MicroPython VM on LittleFS, `make deploy` over mpremote, Modbus RTU, MQTT,
OCPI 2.2.1 over HTTP in both directions, the database. Simulated: the chip's pins and radio, the
meter, the car, the people.

Leaves in build/demo: session.json, cdr.json, commands.json (as the eMSP holds them), journal.jsonl
(the board's own records, read from its flash), timeline.png, and the logs.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from tools import paths
from tools.stage import EVSE, LOCATION, STATION, Stage, StageError, until
from tools.timeline import Timeline

OUT = paths.BUILD / "demo"


class Story:
    """Tells what happens and keeps what was checked."""

    def __init__(self) -> None:
        self._begun = time.monotonic()
        self.failed: list[str] = []

    def say(self, text: str) -> None:
        print(f"{time.monotonic() - self._begun:6.1f} s  {text}", flush=True)

    def detail(self, text: str) -> None:
        print(f"          {text}", flush=True)

    def check(self, what: str, holds: object) -> None:
        self.detail(f"{'ok ' if holds else 'NOT'} {what}")
        if not holds:
            self.failed.append(what)


def vm_note() -> str:
    """Which MicroPython plays the chip."""
    import subprocess

    ask = "import sys; print(sys.version.split('; ')[1].split(' on ')[0], sys.maxsize > 2**31)"
    done = subprocess.run([paths.VM, "-c", ask], capture_output=True, text=True, check=True)
    version, wide = done.stdout.rsplit(maxsplit=1)
    if wide == "True":
        return f"{version}, 64-bit: not an ESP32's word size, so heap numbers are not the chip's"
    return f"{version}, 32-bit as an ESP32, 96 KiB of heap"


def play(story: Story, stage: Stage) -> None:
    say = story.say
    say(f"a bare virtual board: {vm_note()}")
    say(f"make deploy PORT={stage.board.link.name} BOARD=virtual CONFIG=config.json")
    stage.deploy(story.detail)
    until("the board at the gateway", lambda: stage.station().get("online"), 30)
    say("the board is online: authenticated messages over MQTT, records acknowledged")

    stage.start_emsp()
    until("EVSE AVAILABLE at the eMSP", lambda: stage.evse_status() == "AVAILABLE", 30)
    say("the eMSP has registered over OCPI credentials and sees the EVSE AVAILABLE")
    first_wh = stage.meter.wh()
    with Timeline(stage) as line:
        time.sleep(2)
        session_id = charge(story, stage, line)
    settle(story, stage, line, first_wh, session_id)


def charge(story: Story, stage: Stage, line: Timeline) -> str:
    """From the reservation to the CDR; returns the Session's id."""
    say, check = story.say, story.check
    line.mark("Alice reserves")
    say("Alice's eMSP sends RESERVE_NOW")
    asked = stage.command(
        "RESERVE_NOW", driver="alice", location_id=LOCATION, evse_uid=EVSE,
        reservation_id="RES-1", expiry_s=900,
    )  # fmt: skip
    check("CommandResponse ACCEPTED", asked["response"]["result"] == "ACCEPTED")
    check("CommandResult ACCEPTED at the response_url", stage.result(asked) == "ACCEPTED")
    until("EVSE RESERVED at the eMSP", lambda: stage.evse_status() == "RESERVED")
    line.reserved.append(line.now())
    say("the EVSE is RESERVED")
    session_id = until("the Session", lambda: next(iter(stage.emsp()["sessions"]), None))
    time.sleep(2)

    line.mark("Bob's card: refused")
    say("Bob shows his card: it is valid, and not the reservation's")
    stage.show("bob")
    refused = until(
        "the refusal on record",
        lambda: next((r for r in records(stage) if r["t"] == "refused"), None),
    )
    check("the contactor stayed open", stage.board.pins()["contactor_feedback"] == 0)
    story.detail(f"on record at the gateway: {refused['what']} refused, {refused['why']}")
    time.sleep(1)

    say("the power fails; the clock is lost with it")
    cut(stage, line, seconds=3)
    until("RESERVED after the cut", lambda: stage.evse_status() == "RESERVED", 30)
    mark = stage.board.watch.mark()
    stage.show("bob")
    time.sleep(2)
    closed = [e for e in stage.board.watch.events[mark:] if e["ev"] == "contactor" and e["value"]]
    check("still RESERVED, and Bob's card still does nothing", not closed)

    line.mark("Alice plugs in, her card starts")
    say("Alice plugs in and shows her card")
    stage.plug("C")
    stage.show("alice")
    stage.board.wait(contactor=1, lock=1, timeout_s=20)
    line.reserved.append(line.now())
    until("the Session ACTIVE at the eMSP", lambda: session(stage)["status"] == "ACTIVE")
    say("locked, contactor closed, charging; the Session is ACTIVE")
    seen: list[float] = []
    end = time.monotonic() + 12
    while time.monotonic() < end:
        kwh = session(stage)["kwh"]
        if not seen or kwh != seen[-1]:
            seen.append(kwh)
        time.sleep(0.3)
    say("kWh at the eMSP: " + " -> ".join(f"{kwh:.3f}" for kwh in seen))
    check("kWh rise at the eMSP", len(seen) >= 3 and seen == sorted(seen))

    line.mark("power fails while charging")
    say("the power fails in the middle of charging")
    cut(stage, line, seconds=4)
    check("the contactor fell open with the power", stage.board.pins()["contactor"] == 0)
    stage.board.wait(contactor=1, timeout_s=60)
    line.mark("the same session goes on")
    until("charging again", lambda: stage.evse_status() == "CHARGING", 30)
    say("power is back, the cable never left its lock: the session goes on")
    before = session(stage)["kwh"]
    until("more kWh", lambda: session(stage)["kwh"] > before, 30)
    check("under the same id", list(stage.emsp()["sessions"]) == [session_id])
    time.sleep(6)

    line.mark("STOP_SESSION")
    say("Alice's eMSP sends STOP_SESSION")
    mark = stage.board.watch.mark()
    asked = stage.command("STOP_SESSION", session_id=session_id)
    opened = stage.board.watch.wait_for(
        lambda e: e["ev"] == "contactor" and e["value"] == 0, 15, mark
    )
    unlocked = stage.board.watch.wait_for(lambda e: e["ev"] == "lock" and not e["value"], 15, mark)
    check("CommandResult ACCEPTED", stage.result(asked) == "ACCEPTED")
    check("the contactor opened, then the connector unlocked", opened["t_ms"] < unlocked["t_ms"])
    until("the CDR at the eMSP", lambda: stage.emsp()["cdrs"], 30)
    line.mark("the CDR")
    say("the CDR has arrived")
    stage.plug("A")
    until("the Session COMPLETED", lambda: session(stage)["status"] == "COMPLETED")
    until("EVSE AVAILABLE", lambda: stage.evse_status() == "AVAILABLE")
    time.sleep(2)
    return session_id


def settle(
    story: Story, stage: Stage, line: Timeline, first_wh: int, session_id: str
) -> None:
    """Is what the eMSP holds what the meter counted?"""
    say, check = story.say, story.check
    cdr = next(iter(stage.emsp()["cdrs"].values()))
    advance = stage.meter.wh() - first_wh
    billed = round(cdr["total_energy"] * 1000)
    say(f"the meter counted {advance} Wh, the CDR bills {billed} Wh, {cdr['total_cost']}")
    held = stage.emsp()
    check("CDR energy = the meter's advance, to the Wh", billed == advance)
    check("Session energy too", round(session(stage)["kwh"] * 1000) == advance)
    check("one Session id from reservation to CDR", cdr["session_id"] == session_id)
    check("one Session, one CDR", len(held["sessions"]) == len(held["cdrs"]) == 1)
    check("the strict eMSP found no violation of OCPI", not held["violations"])
    station = stage.station()
    check("no gap, no fork in the board's journal", not station["gaps"] and not station["forks"])
    keep(stage, held, session_id, cdr)
    line.draw(
        OUT / "timeline.png",
        f"One reservation, one charge, two power cuts: {advance} Wh metered, {billed} Wh billed",
    )


def records(stage: Stage) -> list[dict[str, Any]]:
    """The board's records at the gateway."""
    return [json.loads(row["body"]) for row in stage.records()]


def session(stage: Stage) -> dict[str, Any]:
    return next(iter(stage.emsp()["sessions"].values()))


def cut(stage: Stage, line: Timeline, seconds: float) -> None:
    """No power for some seconds; the RTC loses it too."""
    line.cut()
    stage.board.power_off()
    time.sleep(seconds)
    stage.board.power_on(rtc="lost")
    line.back()


def keep(stage: Stage, held: dict[str, Any], session_id: str, cdr: dict[str, Any]) -> None:
    """What a person may want to look at afterwards."""
    from tools.journal import read_image

    kept = {"session": held["sessions"][session_id], "cdr": cdr, "commands": held["commands"]}
    for name, content in kept.items():
        (OUT / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")
    stage.board.power_off()
    journal = read_image(stage.board.flash)
    lines = b"".join(record.body + b"\n" for record in journal.records)
    (OUT / "journal.jsonl").write_bytes(lines)


def main() -> int:
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    story = Story()
    try:
        with Stage(OUT / "stage") as stage:
            play(story, stage)
    except StageError as error:
        story.failed.append(str(error))
        print(f"\n{error}\nthe logs are in {Path(OUT, 'stage').relative_to(paths.ROOT)}")
    print()
    if story.failed:
        print("did not hold: " + "; ".join(story.failed))
        return 1
    print(f"All held for station {STATION}. Look at build/demo/timeline.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
