"""After a power cut, is the session taken up again or ended? The whole product of what matters,
against the sentence of the design, written down here once more without a look at the code.

"`resume` (cable never left: connector lock stayed locked, or outage within N minutes; right still
valid; ledger continuous; minimum off-time; at most 3 times) or `stop`."

Each case begins with the files of a board that charged when the power went, and with its meter.
The pulse meter is the firmware's own over a counter that the test turns.
"""

from __future__ import annotations

import importlib
import itertools
import sys
from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

import pytest
from portable import bench
from portable.bench import ANNA, World
from portable.store import Store
from wattlock import session

from tools import paths

MINUTE = 60_000
START_WH = 5000  # the register when a world begins


class Case(NamedTuple):
    policy: str = "resume"  # what the configuration says
    lock: str = "stayed"  # "stayed" or "opened" as its feedback shows; "blind": no feedback
    cable: str = "stayed"
    right: str = "valid"  # or "withdrawn" by the operator, "fault", "estop"
    outage_ms: int = 8 * MINUTE
    before: str = "known"  # the time, before the cut
    after: str = "known"  # and after it: "known", "unknown" or "rtc"
    resumed: int = 0  # how often, before
    meter: str = "same"  # or "swapped", "back" (a lower register), "dead", "late" (30 s)


def goes_on(case: Case) -> bool:
    """The design's sentence."""
    if case.policy == "stop":
        return False
    if case.lock == "blind":
        time_is_known = case.before == "known" and case.after != "unknown"
        never_left = time_is_known and case.outage_ms <= 10 * MINUTE
    else:
        never_left = case.lock == "stayed"
    never_left = never_left and case.cable == "stayed"
    continuous = case.meter in ("same", "late")
    return never_left and case.right == "valid" and continuous and case.resumed < 3


class Timeless(bench.Gateway):
    """Answers, and does not tell the time."""

    def header(self, head: Any, commands: Any = ()) -> dict[str, Any]:
        header = super().header(head, commands)
        del header["unix_ms"]
        return header


class Pulses:
    """A World's meter as pulses at a pin: 1000 a kWh."""

    def __init__(self, world: Any) -> None:
        self.world = world
        hal = importlib.import_module("hal.pulse")
        self.began_mwh = world.real[1].mwh
        self.inner = hal.Pulses(self, 1000, 22_080, self, world.ticks_diff)
        self.lost_max_wh = self.inner.lost_max_wh

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def value(self) -> int:
        """The counter: from 0 at each start."""
        real = self.world.real[1]
        return real.mwh // 1000 - self.began_mwh // 1000

    def poll(self) -> None:
        pass

    def load(self) -> tuple[int, int]:
        return max(self.world.rtc_count, self.world.saved), self.world.saved

    def keep(self, count: int) -> None:
        self.world.rtc_count = count

    def save(self, count: int) -> None:
        self.world.saved = count


class Site(World):
    """A World; with `pulses` its meter is one with a pulse output."""

    def __init__(self, pulses: bool = False, **fields: Any) -> None:
        super().__init__(**fields)
        self.pulses = pulses
        self.rtc_count = 0
        self.saved = START_WH

    def ticks_diff(self, a: int, b: int) -> int:
        return ((a - b + 0x20000000) & 0x3FFFFFFF) - 0x20000000

    def boot(self):
        if not self.pulses:
            return super().boot()
        made = bench.Board.__init__

        def make(board, world, evses):
            made(board, world, evses)
            board.meters[1] = meter = Pulses(world)
            board.buses.append(meter)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(bench.Board, "__init__", make)
            return super().boot()


@pytest.fixture
def pulse_stubs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(paths.STUBS))
    names = ("machine", "wires", "hal", "hal.pulse", "hal.rtc")
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield
    for name in names:
        sys.modules.pop(name, None)


@cache
def charging(pulses: bool, before: str, resumed: int) -> dict[str, Any]:
    """A board in the 30th second of charging, at 11 kW."""
    w = Site(pulses)
    if before == "unknown":
        w.gateway = Timeless(w)
    w.boot()
    w.run(3000)
    w.pins[1].car = "C"
    w.run(500)
    w.app.card(ANNA["uid"])
    w.run(300)
    w.ask("AUTHORIZE", {"evse": 1, "uid": ANNA["uid"], "allowed": "ALLOWED", "token": ANNA})
    for _ in range(resumed + 1):
        energised = lambda: w.evse().session and w.evse().session.phase == session.ENERGISED  # noqa: E731
        assert w.until(energised)
        w.run(30_000)
        if w.evse().session.resumes < resumed:
            w.cut(1000)
            w.run(1000)
    assert w.evse().session.resumes == resumed
    assert (w.app.now() is None) == (before == "unknown")
    w.run(1)
    return {
        "files": dict(w.store.files), "ms": w.ms, "mwh": w.real[1].mwh, "saved": w.saved,
        "rtc_count": w.rtc_count, "boot": w.app.boot, "id": w.evse().session.id,
        "epoch": w.evse().ledger.epoch,
    }  # fmt: skip


def returned(case: Case, pulses: bool = False, kept: bool = False) -> Site:
    """The site after the cut of `case`, until it is decided. `kept`: a reset, RTC memory stays."""
    found = charging(pulses, case.before, case.resumed)
    w = Site(pulses, on_power_return=case.policy)
    w.store = Store(found["files"])
    w.ms, w.saved = found["ms"], found["saved"]
    w.rtc_count = found["rtc_count"] if kept else 0
    pins, real = w.pins[1], w.real[1]
    real.mwh = found["mwh"]
    w.pass_ms(case.outage_ms)
    pins.car = "C" if case.cable == "stayed" else "A"
    pins.feedback = case.lock != "blind"
    pins.lock_out = case.lock != "opened"
    pins.fail = case.right == "fault"
    w.estop = case.right == "estop"
    if case.after != "known":
        w.gateway.deaf = True
    if case.after == "rtc":
        w.rtc = (w.unix_ms(), 2000)
    if case.meter == "swapped":
        real.serial = "NEW"
    elif case.meter == "back":
        real.mwh -= 1_000_000
    real.dead = case.meter in ("dead", "late")
    began = w.ms
    w.boot()
    if case.right == "withdrawn":  # in the moment before: the operator's word is durable
        w.run(100, 100)
        w.app.commit(({"t": "event", "what": "availability", "evse": 1, "operative": False},))
    while w.ms - began < 75_000:
        w.run(500, 500)
        if w.ms - began > 30_000 and case.meter == "late":
            real.dead = False
        if pins.is_closed():
            break
        if w.evse().session is None and w.ms - began > 10_000:
            break
    return w


def check(case: Case, pulses: bool = False, kept: bool = False) -> None:
    w = returned(case, pulses, kept)
    found = charging(pulses, case.before, case.resumed)
    pins = w.pins[1]
    closings = [value for name, value in pins.log if name == "contactor" and value]
    s = w.evse().session
    if not goes_on(case):
        assert closings == [], "energised again"
        journal = b"".join(w.store.files.values())
        assert journal.count(b'"what":"resumed"') == case.resumed
        assert b'"what":"stopping"' in journal and b'"cause":"power_loss"' in journal
        assert s is None or (s.phase == session.ENDING and s.cause == session.POWER_LOSS)
        return
    assert len(closings) == 1 and s is not None and s.id == found["id"]
    assert w.app.up_ms() >= 5000, "the least time off"
    assert s.resumes == case.resumed + 1
    # it ends as it should, and all of the energy is its own
    w.gateway.deaf = False
    w.run(30_000, 500)
    w.app.card(ANNA["uid"])
    assert w.until(lambda: w.evse().session is None)
    w.run(3000)
    (stop,) = w.records("stop")
    true = w.real[1].mwh // 1000 - START_WH
    assert stop["total_wh"] == stop["register_wh"] - w.records("start")[0]["register_wh"]
    if pulses:
        assert not [r for r in w.records("meter") if r["what"] in ("rollback", "serial", "jump")]
        most = w.app.board.meters[1].lost_max_wh * (1 if not kept else 0)
        assert 0 <= true - stop["total_wh"] <= most, (true, stop)
    else:
        assert stop["total_wh"] == true
    assert w.evse().ledger.epoch == found["epoch"]


def shown(case: Case) -> str:
    return " ".join(str(value) for value in case)


POLICIES, LOCKS, CABLES = ("resume", "stop"), ("stayed", "opened", "blind"), ("stayed", "moved")
RIGHTS = ("valid", "withdrawn", "fault", "estop")
OUTAGES = (200, 8 * MINUTE, 11 * MINUTE)
BEFORE, AFTER = ("known", "unknown"), ("known", "unknown", "rtc")


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("lock", LOCKS)
@pytest.mark.parametrize("cable", CABLES)
@pytest.mark.parametrize("right", RIGHTS)
def test_every_case_with_a_modbus_meter(policy: str, lock: str, cable: str, right: str) -> None:
    for rest in itertools.product(OUTAGES, BEFORE, AFTER, (0, 3)):
        case = Case(policy, lock, cable, right, *rest)
        try:
            check(case)
        except AssertionError as error:
            raise AssertionError(shown(case)) from error


@pytest.mark.parametrize("meter", ["same", "swapped", "back", "dead", "late"])
@pytest.mark.parametrize("lock", LOCKS)
def test_every_meter(meter: str, lock: str) -> None:
    for outage_ms, after, resumed in itertools.product(OUTAGES, AFTER, (0, 2, 3)):
        case = Case("resume", lock, "stayed", "valid", outage_ms, "known", after, resumed, meter)
        try:
            check(case)
        except AssertionError as error:
            raise AssertionError(shown(case)) from error


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("lock", LOCKS)
@pytest.mark.parametrize("policy", POLICIES)
def test_every_case_with_a_pulse_meter(
    policy: str, lock: str, kept: bool, pulse_stubs: None
) -> None:
    """`kept`: a reset, over which RTC memory has the count; else the file and the journal do."""
    for rest in itertools.product(CABLES, RIGHTS, OUTAGES, BEFORE, AFTER, (0, 3)):
        case = Case(policy, lock, *rest)
        if policy == "stop" and case.resumed:
            continue
        try:
            check(case, pulses=True, kept=kept)
        except AssertionError as error:
            raise AssertionError(shown(case)) from error


def test_the_sentence_says_both() -> None:
    cases = [Case(*values) for values in itertools.product(
        POLICIES, LOCKS, CABLES, RIGHTS, OUTAGES, BEFORE, AFTER, (0, 3)
    )]  # fmt: skip
    # by hand: policy, cable, right and count leave 1 of 2 x 2 x 4 x 2; a lock that stayed takes
    # all 18 of outage, before and after; a blind one 2 outages x known x 2
    assert sum(map(goes_on, cases)) == 18 + 4


# Under a booking, and before somebody else's ------------------------------------------------
#
# "who charges without a booking, or beyond its end, has to be away when the guard time of the next
# slot begins" (overstay `stop`; with `charge` nobody has to), and "with the time unknown, `hold`
# takes every slot for running that is not surely over". The lock proves that the cable stayed.

SLOT_MS, GUARD_MS = 60 * MINUTE, 5 * MINUTE


class Booked(NamedTuple):
    own: bool  # the session is the booking's; else a walk-in's, and the slot is another's
    outage_ms: int
    after: str  # the time: "known", "unknown" or "rtc"
    overstay: str = "stop"
    clock_lost: str = "hold"


def may_go_on(case: Booked) -> bool:
    """The two sentences. An own slot runs from the beginning of the world; another's comes after
    20 minutes."""
    if case.overstay == "charge":
        return True
    if case.own:
        return case.after == "unknown" or case.outage_ms < SLOT_MS
    if case.after == "unknown":
        return case.clock_lost == "release"
    return not 20 * MINUTE - GUARD_MS <= case.outage_ms < 20 * MINUTE + SLOT_MS


@cache
def booked_charging(own: bool, pulses: bool = False) -> dict[str, Any]:
    """As `charging`, of a board with bookings; ANNA has the slot, BERT walks in."""
    w = booked_site(Booked(own, 0, "known"), pulses)
    w.boot()
    w.run(3000)
    start_ms = bench.UNIX_MS + (0 if own else 20 * MINUTE)
    row = {"booking_id": "B1", "start_ms": start_ms, "end_ms": start_ms + SLOT_MS,
           "guard_ms": GUARD_MS, "tokens": [dict(ANNA)]}  # fmt: skip
    w.ask("SET_BOOKINGS", {"evse": 1, "base": 0, "version": 1, "put": [row]})
    assert w.until(lambda: bool(w.evse().slots.rows))
    w.pins[1].car = "C"
    w.run(500)
    token = ANNA if own else bench.BERT
    w.app.card(token["uid"])
    w.run(300)
    w.ask("AUTHORIZE", {"evse": 1, "uid": token["uid"], "allowed": "ALLOWED", "token": token})
    assert w.until(lambda: w.evse().session and w.evse().session.phase == session.ENERGISED)
    (start,) = w.records("start")
    assert start.get("booking_id") == ("B1" if own else None)
    w.run(30_001, 500)
    return {
        "files": dict(w.store.files), "ms": w.ms, "mwh": w.real[1].mwh, "drawn": w.drawn,
        "saved": w.saved,
    }  # fmt: skip


def booked_site(case: Booked, pulses: bool = False) -> Site:
    w = Site(pulses, overstay=case.overstay, clock_lost=case.clock_lost)
    w.config["bookings"] = True
    return w


def booked_return(case: Booked, pulses: bool = False) -> Site:
    """The site when power is back, before its first turn."""
    found = booked_charging(case.own, pulses)
    w = booked_site(case, pulses)
    w.store, w.saved = Store(found["files"]), found["saved"]
    w.ms, w.real[1].mwh, w.drawn = found["ms"], found["mwh"], found["drawn"]
    w.pins[1].car, w.pins[1].lock_out = "C", True
    w.pass_ms(case.outage_ms)
    w.gateway.deaf = case.after != "known"
    if case.after == "rtc":
        w.rtc = (w.unix_ms(), 2000)
    w.boot()
    return w


def closings(w: Site) -> int:
    return len([value for name, value in w.pins[1].log if name == "contactor" and value])


BOOKED = [
    Booked(own, outage_ms, after, overstay, clock_lost)
    for own in (True, False)
    # before the guard time; in it; in the slot of either; after another's; and after both
    for outage_ms in (8 * MINUTE, 17 * MINUTE, 40 * MINUTE, 70 * MINUTE, 90 * MINUTE)
    for after in AFTER
    for overstay in ("stop", "charge")
    for clock_lost in ("hold", "release")
]


@pytest.mark.parametrize("pulses", [False, True])
@pytest.mark.parametrize("case", BOOKED, ids=shown)
def test_every_case_with_a_booking(case: Booked, pulses: bool, pulse_stubs: None) -> None:
    w = booked_return(case, pulses)
    w.run(75_000, 500)
    if may_go_on(case):
        assert closings(w) == 1 and w.pins[1].is_closed()
        assert w.evse().session.phase == session.ENERGISED
        return
    assert closings(w) == 0, "energised again"
    assert w.evse().session is None
    w.gateway.deaf = False
    assert w.until(lambda: w.records("stop"), 130_000)  # it asks ever more rarely
    (stop,) = w.records("stop")
    # who knows the time knows that it was over; who does not, only that the power was away
    assert stop["cause"] == ("power_loss" if case.after == "unknown" else "booking_ended")
    most = w.app.board.meters[1].lost_max_wh if pulses else 0
    assert 0 <= w.real[1].mwh // 1000 - START_WH - stop["total_wh"] <= most


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("outage_ms", [8 * MINUTE, 70 * MINUTE])
def test_a_gateway_that_answers_late_is_waited_for(own: bool, outage_ms: int) -> None:
    """A walk-in does not go on into what may be another's slot; an own one is believed to last,
    and ends as soon as it is known that it does not."""
    case = Booked(own, outage_ms, "late")
    w = booked_return(case)
    w.run(10_000, 500)
    assert closings(w) == (1 if own else 0)
    w.gateway.deaf = False
    assert w.until(lambda: w.app.now() is not None, 45_000)  # it asks ever more rarely
    w.run(5000, 500)
    goes_on = may_go_on(case._replace(after="known"))
    assert closings(w) == (1 if own or goes_on else 0)
    assert w.pins[1].is_closed() == goes_on
    if not goes_on:
        (stop,) = w.records("stop")
        assert stop["cause"] == "booking_ended"


@pytest.mark.parametrize("own", [True, False])
def test_who_goes_on_ends_with_the_slot_or_before_anothers(own: bool) -> None:
    w = booked_return(Booked(own, 8 * MINUTE, "known"))
    until_ms = bench.UNIX_MS + (SLOT_MS if own else 20 * MINUTE - GUARD_MS)
    w.run(until_ms - w.unix_ms() - 3000, 1000)
    assert w.pins[1].is_closed()
    w.run(6000, 500)
    assert not w.pins[1].is_closed()
    w.run(5000)
    (stop,) = w.records("stop")
    assert stop["cause"] == "booking_ended"
