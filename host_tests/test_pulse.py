"""Pulses: exact counts, plausible rates, and what is left of them after resets and cuts."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from wattlock.errors import ConfigError, StorageError

from tools import paths
from tools.rig import Rig

PIN = 27
RATING_W = 22_080  # 32 A, three phases
SPEC = {"pin": PIN, "active": 1}


@pytest.fixture
def wires(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(paths.STUBS))
    names = ("machine", "wires", "hal", "hal.pulse", "hal.rtc", "hal.wallclock")
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    module = importlib.import_module("wires")
    module.clear()
    import time

    for name, function in module.time_functions().items():
        monkeypatch.setattr(time, name, function, raising=False)
    yield module
    for name in names:
        sys.modules.pop(name, None)


class Files:
    """A file system that outlives the board."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.full = False
        self.writes = 0

    def names(self) -> list[str]:
        return list(self.files)

    def read(self, name: str, offset: int, n: int) -> bytes:
        return self.files[name][offset : offset + n]

    def create(self, name: str, data: bytes) -> None:
        if self.full:
            raise StorageError("full")
        self.files[name] = data
        self.writes += 1


class Site:
    """A board with a pulse meter; `boot` starts it again."""

    def __init__(self, wires: Any, imp: int = 1000, rating_w: int = RATING_W) -> None:
        self.wires = wires
        self.imp = imp
        self.rating_w = rating_w
        self.files = Files()
        self.true = 0
        self.boot()

    def boot(self, told_wh: int | None = None) -> None:
        self.hal = importlib.import_module("hal.pulse")
        self.wires._watched.clear()
        self.hal.Flash = lambda path: self.files
        self.meter = self.hal.open_pulse({"imp_per_kwh": self.imp}, SPEC, self.rating_w)
        self.meter.floor(told_wh)
        self.turn(0)

    def turn(self, ms: int) -> None:
        self.wires.advance(ms)
        self.meter.turn(self.wires.ticks_ms())

    def pulses(self, count: int, every_ms: int, turn_ms: int = 5) -> None:
        for _ in range(count):
            for _ in range(every_ms // turn_ms - 1):
                self.turn(turn_ms)
            self.wires.pulse_counts[PIN] = self.wires.pulse_counts.get(PIN, 0) + 1
            self.true += 1
            self.turn(turn_ms)

    def settled(self) -> int:
        self.meter.demand()
        self.turn(5)
        return self.meter.energy_wh


@pytest.fixture(params=["counter", "interrupts"])
def site(wires: Any, request: pytest.FixtureRequest) -> Site:
    if request.param == "interrupts":
        del importlib.import_module("machine").Counter
    return Site(wires)


def test_energy_and_power(site: Site) -> None:
    assert (site.meter.energy_wh, site.meter.power_w, site.meter.serial) == (0, None, "")
    site.pulses(50, 360)  # 1000 imp/kWh: 3,600,000 Ws x 1000 / 360 ms
    assert site.settled() == 50
    assert site.meter.power_w == 10_000
    assert site.meter.failed == 0 and site.meter.readings >= 17


def test_power_falls_with_the_time_without_a_pulse(site: Site) -> None:
    site.pulses(5, 360)
    for _ in range(60):
        site.turn(1000)
    assert site.meter.power_w is not None and site.meter.power_w <= 60  # 3,600,000 / 60,000 ms
    assert site.meter.energy_wh == 5


@pytest.mark.parametrize("days", [5, 7, 12, 13, 19])
def test_days_without_a_pulse(site: Site, days: int) -> None:
    """Ticks tell spans of six days, and begin anew after twelve: nothing is lost after them, and
    no power is shown that nobody took."""
    site.pulses(5, 360)
    for _ in range(days * 144):
        site.turn(600_000)
        assert site.meter.power_w in range(7)  # 3,600,000 / 600,000 ms
    for _ in range(50):
        site.pulses(1, 360)
        assert site.meter.power_w in range(10_001)
    assert site.settled() == 55
    assert site.meter.power_w == 10_000 and site.meter.failed == site.meter.dropped == 0


def test_a_demand_reads_at_once(site: Site) -> None:
    site.pulses(3, 500)
    readings = site.meter.readings
    site.turn(5)
    assert site.meter.readings == readings
    assert site.settled() == 3
    assert site.meter.readings == readings + 1


@pytest.mark.parametrize("imp", [100, 640, 1000, 3000, 10_000])
def test_no_drift(wires: Any, imp: int) -> None:
    """A million pulses in uneven portions, against rational arithmetic."""
    site = Site(wires, imp, rating_w=80_000_000 // imp)
    site.turn(1000)
    total = 0
    for i in range(200):
        portion = 1 + (i * 7919) % 20
        wires.pulse_counts[PIN] = total = total + portion
        site.turn(1000)
        assert site.meter.energy_wh == Fraction(total * 1000, imp).__floor__()
    site.meter._total += 10**9 - total  # far beyond 30 bits
    assert site.settled() == Fraction(10**9 * 1000, imp).__floor__()


def test_noise_is_dropped_and_not_billed(site: Site) -> None:
    site.pulses(10, 360)
    assert site.settled() == 10
    for _ in range(40):
        site.wires.pulse_counts[PIN] += 7
        site.turn(25)  # 280 pulses a second
    assert site.meter.failed > 0 or site.meter._counter.dropped > 0
    assert site.meter.energy_wh <= 10 + 22
    failed = site.meter.failed
    for _ in range(3):
        site.turn(1000)
    assert site.meter.failed == 0 <= failed
    before = site.meter.energy_wh
    site.pulses(10, 360)
    assert site.settled() == before + 10


def test_a_stall_loses_nothing_that_the_queue_holds(site: Site) -> None:
    site.pulses(5, 200)
    for burst in (1, 4, 6):
        site.wires.pulse_counts[PIN] += burst
        site.turn(1000)
        site.turn(1000)
    assert site.settled() == 16


def test_edges_closer_than_s0_allows_are_one(wires: Any) -> None:
    del importlib.import_module("machine").Counter
    site = Site(wires)
    site.turn(100)
    wires.pulse_counts[PIN] = 3  # a contact that bounces, between two looks
    site.turn(5)
    site.turn(1000)
    assert site.settled() == 1


@pytest.mark.parametrize("days", [0, 5, 7, 12])
def test_edges_that_wait_are_no_more_than_s0_allows(wires: Any, days: int) -> None:
    """Three in 60 ms in which nobody looked: there is room for two, also days after the last."""
    del importlib.import_module("machine").Counter
    site = Site(wires)
    site.pulses(1, 100)
    for _ in range(days * 144):
        site.turn(600_000)
    site.turn(100)
    wires.pulse_counts[PIN] += 3
    site.turn(60)
    site.turn(1000)
    assert site.settled() == 3


def test_what_interrupts_cannot_count_is_refused(wires: Any) -> None:
    machine = importlib.import_module("machine")
    Site(wires, imp=10_000)
    del machine.Counter
    with pytest.raises(ConfigError, match=r"imp_per_kwh 10000: 61\.3 pulses a second.*at most"):
        Site(wires, imp=10_000)
    Site(wires, imp=1000)


@given(
    imp=st.sampled_from([100, 640, 1000, 3000, 10_000]),
    history=st.lists(
        st.tuples(
            st.integers(0, 70), st.sampled_from(["go on", "reset", "cut", "demand", "record"])
        ),
        max_size=12,
    ),
)
@example(1000, [(45, "record"), (0, "cut")])
def test_a_reset_loses_little_and_nothing_is_invented(
    imp: int, history: list[tuple[int, str]]
) -> None:
    """P1 for pulses: 0 <= true - counted <= lost_max_wh for each cut, and nothing at a reset; and
    what a record has told is never taken back."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(paths.STUBS))
        wires = importlib.import_module("wires")
        wires.clear()
        import time

        for name, function in wires.time_functions().items():
            patch.setattr(time, name, function, raising=False)
        site = Site(wires, imp, rating_w=80_000_000 // imp)
        cuts = told_wh = 0
        for pulses, event in history:
            site.pulses(pulses, 200, turn_ms=100)
            if event == "demand":
                site.settled()
            elif event == "record":
                told_wh = site.meter.energy_wh
            elif event in ("reset", "cut"):
                if event == "cut":
                    wires.state["memory"] = b""
                    cuts += 1
                else:
                    site.settled()
                site.boot(told_wh)
                assert site.meter.energy_wh >= told_wh, "a record is taken back"
            lost = Fraction(1000 * (site.true - site.meter._total - site.meter._fresh), imp)
            assert 0 <= lost <= cuts * site.meter.lost_max_wh
        assert told_wh <= site.settled() <= Fraction(1000 * site.true, imp)
        for name in ("machine", "wires", "hal", "hal.pulse", "hal.rtc"):
            sys.modules.pop(name, None)


def test_the_bound_is_what_the_docstring_says(wires: Any) -> None:
    # 50 Wh, a pulse of 1 Wh, and 3 s at 22,080 W: 18.4 Wh
    assert Site(wires).meter.lost_max_wh == 51 + 19
    # a pulse is 10 Wh: five of them, one more
    assert Site(wires, imp=100).meter.lost_max_wh == 60 + 19


def test_the_file_is_written_sparingly(wires: Any) -> None:
    site = Site(wires)
    site.pulses(500, 200, turn_ms=100)  # half a kWh
    assert site.files.writes <= 10
    for _ in range(70):
        site.turn(1000)
    assert site.files.writes <= 11
    for _ in range(600):
        site.turn(1000)
    assert site.files.writes <= 11, "idle writes nothing"


def test_a_file_that_cannot_be_written_fails_the_readings(wires: Any) -> None:
    site = Site(wires)
    site.pulses(5, 200)
    site.files.full = True
    site.meter.demand()
    for _ in range(6):
        site.turn(1000)
    assert site.meter.failed >= 5 and site.meter.energy_wh < 6
    site.files.full = False
    site.turn(1000)
    assert site.meter.failed == 0 and site.meter.energy_wh == 5


@pytest.mark.parametrize("spoilt", [b"", b"\0" * 16, b"WLp\x1b" + b"\xff" * 12])
def test_a_spoilt_record_is_no_count(wires: Any, spoilt: bytes) -> None:
    site = Site(wires)
    site.pulses(60, 200, turn_ms=100)
    site.settled()
    wires.state["memory"] = b"\0" * 16 + spoilt
    site.boot()
    assert site.settled() == 60, "the file has it"
    site.files.files[str(PIN)] = spoilt
    wires.state["memory"] = b""
    site.boot()
    assert site.settled() == 0


def test_clock_and_pulses_share_rtc_memory(wires: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("time.gmtime")
    import time

    monkeypatch.setattr(time, "gmtime", lambda s: (1970, 1, 1, 0, 0, 0, 3, 1), raising=False)
    site = Site(wires)
    site.pulses(20, 200, turn_ms=100)
    site.turn(1000)
    clock = importlib.import_module("hal.wallclock")
    clock.keep(1_790_000_000_000)
    site.files.files.clear()
    site.boot()
    assert site.meter.energy_wh == 20
    site.pulses(5, 200, turn_ms=100)
    site.turn(1000)
    rows = {wires.state["memory"][at : at + 4] for at in range(0, 32, 16)}
    assert rows == {b"WLt1", b"WLp" + bytes((PIN,))}


BUSES = {"s0": {"kind": "pulse", "pin": PIN, "imp_per_kwh": 1000}}
EVSE = {"n": 1, "meter": "pulse", "bus": "s0", "max_a": 32, "phases": 3}


def test_a_charge_is_metered_by_pulses(micropython: Any) -> None:
    """Counted, billed, and after a loss of power never less than what was told: the file is up to
    50 Wh behind the record of a pause."""
    with Rig(heap="200k", buses=BUSES, evses=[EVSE]) as rig:
        rig.online()
        rig.plug("C")
        rig.show_card()
        rig.charging()
        for _ in range(30):
            rig.board.pulse(3)
            rig.skip(1000)
        rig.show_card()
        rig.stopped()
        records = rig.gateway.records
        (start,) = (r for r in records if r["t"] == "start")
        (stop,) = (r for r in records if r["t"] == "stop")
        assert (start["register_wh"], stop["total_wh"], stop["register_wh"]) == (0, 90, 90)
        rig.plug("A")
        for _ in range(20):  # the last pulse allows ever less power: nothing is welded
            rig.skip(1000)
        assert not rig.gateway.seen("event", what="fault")
        rig.board.power_off()
        rig.board.power_on(rtc="lost")
        rig.until("the second boot", lambda: rig.gateway.seen("boot", boot=2))
        rig.board.pulse(2)
        rig.skip(2000)
        rig.plug("C")
        rig.show_card()
        rig.wait(contactor=1)
        rig.until("a second start", lambda: rig.gateway.seen("start", register_wh=92))
        for _ in range(10):
            rig.board.pulse(3)
            rig.skip(1000)
        rig.plug("B")
        rig.until("the pause", lambda: rig.gateway.seen("period", register_wh=122))
        rig.board.power_off()
        rig.board.power_on(rtc="lost")
        rig.until("the third boot", lambda: rig.gateway.seen("boot", boot=3))
        rig.skip(6000)
        rig.until("it goes on", lambda: rig.gateway.seen("event", what="resumed"))
        rig.board.pulse(3)
        rig.skip(2000)
        rig.show_card()
        rig.stopped()
        rig.until("the second stop", lambda: rig.gateway.seen("stop", register_wh=125))
        stop = [r for r in rig.gateway.records if r["t"] == "stop"][-1]
        assert (stop["total_wh"], stop["register_wh"]) == (33, 125)
        assert {r["what"] for r in rig.gateway.records if r["t"] == "meter"} <= {"found", "gap"}
        boots = [r["evses"][0] for r in rig.gateway.records if r["t"] == "boot"]
        # 50 Wh, a pulse of 1 Wh, and 3 s at 22,080 W
        assert {row["lost_max_wh"] for row in boots} == {70}
