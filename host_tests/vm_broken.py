"""Run in the MicroPython VM by test_broken_flash.py: the agent on a flash that is full or fails.

The bench of vm_cuts.py: the agent as start.py builds it, over real LittleFS. Each function is a
test; the meter's truth and the gateway's copy are what is asked. Whatever the flash does, the
contactor opens within a turn and what is on record in the end adds up (P1, P2, P7).
"""

import json
import os
import sys

import vm_cuts
from portable import bench

HOST = {}


def site():
    image = vm_cuts.memory()
    chip = vm_cuts.Chip(image)
    vm_cuts.erase(image)
    vm_cuts.install(chip, HOST)
    made = vm_cuts.Site(chip)
    vm_cuts.first_boot(made)
    made.witness.base_wh = vm_cuts.BASE_WH
    return made


def charging(s):
    vm_cuts.reserve(s, bench.ANNA, "R1", 60)
    s.pins[1].car = "C"
    s.run(2000)
    s.show(bench.ANNA)
    assert s.until(s.pins[1].is_closed)
    s.run(120000)


def stopped_by_card(s):
    """The contactor opens in the turn of the card, whatever the flash says."""
    s.show(bench.ANNA)
    s.run(100)
    assert not s.pins[1].is_closed()


def refused(s):
    """No session starts."""
    s.pins[1].car = "C"
    s.app.card(bench.BERT["uid"])
    s.run(500)
    data = {"evse": 1, "uid": bench.BERT["uid"], "allowed": "ALLOWED", "token": bench.BERT}
    s.ask("AUTHORIZE", data)
    s.run(20000)
    assert not s.pins[1].is_closed()


def fill():
    """Somebody's file takes all the room there is."""
    taken = 0
    with open("/filler", "wb") as f:
        try:
            for size in (4096, 64):
                try:
                    while True:
                        f.write(bytes(size))
                        f.flush()
                        taken += size
                except OSError:
                    pass
        except OSError:
            pass
    return taken


def adds_up(s):
    """All is told, one stop for each start, and the meter's advance is on record to the Wh."""
    vm_cuts.told(s)
    s.witness.finish(s.gateway.lines, 1)
    assert s.witness.broken is None, s.witness.broken
    stops = s.records("stop")
    advance = s.real[1].mwh // 1000 - vm_cuts.BASE_WH
    assert sum([r["total_wh"] for r in stops]) == advance > 0, (stops, advance)
    return stops


def orders(s, count):
    """So many commands, as long as they have a result."""
    for done in range(count):
        data = {"evse": 1, "operative": True}
        s.ask("SET_AVAILABILITY", data, exp=s.unix_ms() + 600000)
        if not s.until(lambda: not s.pending, 90000):  # asked again each minute
            return done
    return count


def full():
    """The reserved room takes the results and the stop of the session that runs."""
    s = site()
    charging(s)
    assert fill() > 500000
    assert orders(s, 30) == 30  # about 10 KB
    data = {"session_id": s.witness.session["session_id"]}
    command = s.ask("STOP_SESSION", data, exp=s.unix_ms() + 600000)
    assert s.until(lambda: s.witness.session is None, 90000), "the stop is not on record"
    assert not s.pins[1].is_closed()
    assert s.until(lambda: s.result_of(command) == ["ACCEPTED"], 20000)
    assert "reserve" not in os.listdir("/journal")
    s.pins[1].car = "A"
    adds_up(s)
    os.remove("/filler")
    s.cut(5000)
    vm_cuts.told(s)
    assert os.stat("/journal/reserve")[6] == 32768  # room is kept again
    charging(s)
    stopped_by_card(s)
    assert s.until(lambda: s.witness.session is None)
    assert len(adds_up(s)) == 2


def full_beyond_the_reserve():
    """Nothing can be written: the session stops, none starts; with room, all of it is told."""
    s = site()
    charging(s)
    s.app.journal.store.release()
    fill()
    assert orders(s, 100) < 100
    stopped_by_card(s)
    s.run(30000)
    assert s.witness.session is not None  # its stop waits for room
    s.pins[1].car = "A"
    s.run(5000)
    refused(s)
    s.pins[1].car = "A"
    s.run(130000)
    os.remove("/filler")
    assert s.until(lambda: s.witness.session is None, 20000)
    (stop,) = adds_up(s)
    assert stop["cause"] == "local"


def broken(kinds):
    s = site()
    charging(s)
    s.chip.failing = kinds
    s.run(30000)
    s.press(True)
    s.run(100)
    assert not s.pins[1].is_closed()
    s.press(False)
    s.pins[1].car = "A"
    s.run(5000)
    refused(s)
    s.pins[1].car = "A"
    s.run(130000)
    s.chip.failing = ()
    if not s.until(lambda: s.witness.session is None, 60000):
        raise AssertionError("its end never came on record")
    (stop,) = adds_up(s)
    assert stop["cause"] == "emergency"


def read_only():
    """No program and no erase works any more, for some minutes."""
    broken(("program", "erase"))


def dead():
    """Neither does a read."""
    broken(("program", "erase", "read"))


def read_only_for_good():
    """A cut on a flash that takes nothing: the board boots, holds what it held, starts nothing."""
    s = site()
    vm_cuts.reserve(s, bench.ANNA, "R1", 60)
    vm_cuts.told(s)
    s.chip.failing = ("program", "erase")
    s.cut(10000)
    s.run(20000)
    assert not s.app.booted
    assert s.evse().reservation is not None
    s.pins[1].car = "C"
    s.show(bench.ANNA)
    s.run(20000)
    assert not s.pins[1].is_closed()
    s.chip.failing = ()
    assert s.until(lambda: s.app.booted, 20000)
    s.run(3000)  # the meter is believed again
    s.show(bench.ANNA)
    assert s.until(s.pins[1].is_closed, 20000)


def nothing_readable():
    """Every segment is garbage: set aside, a new life, told; identity and keys are untouched."""
    s = site()
    charging(s)
    vm_cuts.told(s)
    life, last = s.app.journal.id, s.app.journal.seq
    names = [n for n in os.listdir("/journal") if n.endswith(".j")]
    for name in names:
        with open("/journal/" + name, "r+b") as f:
            f.write(b"\x00" * 64)
    s.witness = s.pins[1].witness = vm_cuts.Witness(s)
    s.cut(10000, keeps_rtc=True)
    assert s.until(lambda: s.app.booted)
    assert s.app.journal.id != life
    vm_cuts.told(s)
    (event,) = [r for r in s.records("event") if r["what"] == "journal_new" and r["boot"] == 1][1:]
    assert event["why"] == "corrupt"
    (lost,) = s.records("lost")
    assert lost["class"] == "corrupt" and (lost["journal"], lost["last"]) == (life, last), lost
    assert sorted(os.listdir("/journal.aside")) == names
    assert not s.pins[1].is_closed()  # whose session it was is not known any more


def spare_first():
    """While nobody acknowledges, samples go first and are counted; sessions are all kept."""
    s = site()
    s.online = False
    count = 0
    while s.app.journal.spared < 5 and count < 4000:
        s.app.commit([{"t": "event", "what": "alive"} for _ in range(20)], True)
        count += 1
        s.run(100)
    assert s.app.journal.spared >= 5
    spared = s.app.journal.spared
    s.online = True
    vm_cuts.told(s)
    vm_cuts.reserve(s, bench.ANNA, "R9", 5)
    vm_cuts.told(s)
    lost = s.records("lost")
    assert sum([r["count"] for r in lost]) >= spared and lost[0]["class"] == "spare"


def main():
    HOST.update(json.loads(sys.stdin.read()))
    vm_cuts.open_door(HOST["door"])
    globals()[HOST["test"]]()
    print("done")


if __name__ == "__main__":
    main()
