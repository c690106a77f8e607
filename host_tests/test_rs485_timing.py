"""The RTU master on a line that takes its time, for every baud rate, parity and stop bit.

Time counts in microseconds. A character takes what its bits take; whoever speaks while another
does is not understood. Where the serial line guide has a number, it stands here by itself: 3.5
characters of silence between frames, 1.75 ms above 19200 baud (MODBUS over Serial Line 1.02,
2.5.1.1). How long the loop is held is measured, and held against the table in the firmware's page.
"""

import re
import sys
import time
import types
from fractions import Fraction
from itertools import product
from random import Random
from typing import Any

import pytest
from hal import rs485
from pymodbus.framer.rtu import FramerRTU
from wattlock import config, modbus, registers, signing

from tools import paths

BAUDS = (1200, 2400, 4800, 9600, 19200, 38400, 57600, 115200)
FORMATS = list(product("NEO", (1, 2)))
TURN_MS = 5
TIMEOUT_MS = 300
METER = {
    "meter": "x", "function": 4, "timeout_ms": TIMEOUT_MS,
    "registers": {"energy_import_wh": [0, "u32"], "power_w": [2, "i32"]},
}  # fmt: skip


def framed(data: bytes) -> bytes:
    return data + FramerRTU.compute_CRC(data).to_bytes(2, "big")


class Wire:
    """UART, DE pin, clock, and slave 1, whose register shows at which ms it answers.

    `answers_after_us`: from the request's last bit to the answer's first one; None: never.
    """

    def __init__(self, baud: int, parity: str, stop: int) -> None:
        bits = 1 + 8 + (parity != "N") + stop
        self.char_us = Fraction(bits * 1_000_000, baud)
        self.silence_us = Fraction(7, 2) * self.char_us if baud <= 19200 else Fraction(1750)
        self.answers_after_us: Fraction | None = self.silence_us
        self.us = Fraction(1_000_000)
        self.held_us = Fraction(0)  # by the turn that runs
        self.most_held_us = Fraction(0)
        self.sent_until = Fraction(0)
        self.driven = 0
        self.has_pin = False
        self.coming: list[tuple[Fraction, int]] = []  # when a character begins, and which
        self.input = b""
        self.quiet_since = Fraction(0)
        self.requests: list[Fraction] = []
        self.cut = 0  # requests whose end nobody could hear
        self.lost = 0  # characters that nobody could hear

    # the pin

    def value(self, level: int) -> None:
        self._arrive()
        if not level and self.us < self.sent_until:
            self.cut += 1
            self.coming.clear()
        self.driven = level

    # the UART

    def write(self, frame: Any) -> int:
        frame = bytes(frame)
        self._arrive()
        assert framed(frame[:-2]) == frame and not self.coming and not self.input
        assert self.driven or not self.has_pin, "nobody hears it"
        rest_us = self.us - self.quiet_since
        assert rest_us >= max(10_000, self.silence_us), f"only {float(rest_us)} us of silence"
        self.requests.append(self.us)
        self.sent_until = self.quiet_since = self.us + len(frame) * self.char_us
        if self.answers_after_us is not None:
            self.answer(frame, self.sent_until + self.answers_after_us)
        return len(frame)

    def answer(self, frame: bytes, at: Fraction) -> None:
        if frame[1] == 16:
            reply = framed(frame[:6])
        else:
            wh = int(at / 1000)
            reply = framed(b"\x01\x04\x08" + wh.to_bytes(4, "big") + (11_000).to_bytes(4, "big"))
        self.coming = [(at + i * self.char_us, byte) for i, byte in enumerate(reply)]

    def flush(self) -> None:
        waits_us = max(self.sent_until - self.us, Fraction(0))
        self.held_us += waits_us
        self.us += waits_us

    def _arrive(self) -> None:
        """What has begun by now while the line is driven is lost; what has ended is there."""
        while self.coming:
            begun, byte = self.coming[0]
            if self.driven and begun <= self.us:
                self.lost += 1
            elif begun + self.char_us <= self.us:
                self.input += bytes((byte,))
            else:
                break
            self.quiet_since = begun + self.char_us
            self.coming.pop(0)

    def any(self) -> int:
        self._arrive()
        return len(self.input)

    def readinto(self, buffer: Any) -> int:
        self._arrive()
        n = min(len(buffer), len(self.input))
        buffer[:n], self.input = self.input[:n], self.input[n:]
        return n

    # the loop

    def run(self, bus: rs485.Rs485, ms: int, late: Random | None = None) -> None:
        """Turns for so long; with `late`, one in ten comes up to 150 ms late."""
        end = self.us + ms * 1000
        while self.us < end:
            self.us += TURN_MS * 1000
            if late is not None and late.random() < 0.1:
                self.us += late.randrange(150_000)
            self.held_us = Fraction(0)
            bus.turn(int(self.us / 1000))
            self.most_held_us = max(self.most_held_us, self.held_us)


def line(
    monkeypatch: pytest.MonkeyPatch, baud: int, parity: str, stop: int, de: bool = True
) -> tuple[Wire, rs485.Rs485]:
    """The bus that `open_rs485` makes of a configuration, on such a wire."""
    wire = Wire(baud, parity, stop)
    told: dict[str, Any] = {}

    def uart(id: int, **settings: Any) -> Wire:
        told.update(settings)
        return wire

    class Pin:
        OUT = 3

        def __new__(cls, id: int, mode: int, value: int) -> Any:
            assert (mode, value) == (cls.OUT, 0)
            wire.has_pin = True
            return wire

    chip = types.SimpleNamespace(UART=uart, Pin=Pin)
    monkeypatch.setitem(sys.modules, "machine", chip)  # type: ignore[arg-type]
    monkeypatch.setattr(time, "ticks_diff", lambda a, b: a - b, raising=False)
    pins = {"tx": 17, "rx": 16} | ({"de": 4} if de else {})
    site = {"uart": 1, "baud": baud, "parity": parity, "stop": stop}
    bus = rs485.open_rs485(site, pins, modbus)
    assert (told["baudrate"], told["bits"], told["stop"]) == (baud, 8, stop)
    assert told["parity"] == {"N": None, "E": 0, "O": 1}[parity]
    assert told["timeout"] == 0, "it never waits for what it reads"
    return wire, bus


def counted(meter: registers.Meter) -> dict[str, int]:
    return {modbus.name(i): n for i, n in enumerate(meter.counts[:-1]) if n}


each_baud = pytest.mark.parametrize("baud", BAUDS)


def test_the_rates_are_those_that_the_configuration_takes():
    board = {"board": "b", "uarts": {"1": {}}, "evses": {"1": {}}}
    evse = {"n": 1, "meter": "x", "bus": "b", "max_a": 16}
    site = {"station_id": "S", "board": "b", "evses": [evse],
            "link": {"kind": "mqtt", "host": "h", "insecure": True}}  # fmt: skip
    for baud, (parity, stop) in product(BAUDS, FORMATS):
        bus = {"kind": "rtu", "uart": 1, "baud": baud, "parity": parity, "stop": stop}
        text = str(site | {"buses": {"b": bus}}).replace("'", '"').replace("True", "true")
        assert config.load(text, board, ["x"])["buses"]["b"] == bus


@each_baud
@pytest.mark.parametrize("de", (True, False), ids=("DE", "no DE"))
def test_the_quickest_answer_is_heard_and_the_line_gets_its_rest(monkeypatch, baud, de):
    """An answer may begin 3.5 characters after the request: DE must be low by then, and must not
    be before the last stop bit."""
    for parity, stop in FORMATS:
        wire, bus = line(monkeypatch, baud, parity, stop, de)
        meter = registers.Meter(METER)
        bus.add(meter, 1, 1)  # as often as the line allows
        wire.run(bus, 10_000)
        assert (counted(meter), wire.cut, wire.lost) == ({}, 0, 0), (parity, stop)
        assert meter.readings >= 30
        assert wire.most_held_us <= (held_ms(baud) * 1000 if de else 0)


@each_baud
def test_the_slowest_answer_that_the_meter_may_give_is_waited_for(monkeypatch, baud):
    for parity, stop in FORMATS:
        wire, bus = line(monkeypatch, baud, parity, stop)
        meter = registers.Meter(METER)
        bus.add(meter, 1, 1000)
        wire.answers_after_us = Fraction(TIMEOUT_MS * 1000)
        wire.run(bus, 20_000)
        assert meter.readings >= 19 and counted(meter) == {}, (parity, stop)


@each_baud
def test_silence_costs_its_deadline_and_no_more(monkeypatch, baud):
    """From request to request: the request's own time, the answer's, the meter's, and its answer
    time once more for a late one."""
    for parity, stop in FORMATS:
        wire, bus = line(monkeypatch, baud, parity, stop)
        meter = registers.Meter(METER)
        bus.add(meter, 1, 1000)
        wire.answers_after_us = None
        wire.run(bus, 120_000)
        assert meter.failed >= 4 and wire.most_held_us <= held_ms(baud) * 1000
        least_us = 2 * TIMEOUT_MS * 1000 + (8 + 13) * wire.char_us
        retries = [b - a for a, b in zip(wire.requests, wire.requests[1:], strict=False)][:2]
        for passed in retries:
            assert least_us <= passed <= least_us + (3 * TURN_MS + 2) * 1000


@each_baud
def test_turns_that_come_late_lose_no_more_than_a_try(monkeypatch, baud):
    """A write to the flash takes its time. Where a request is waited for to its end (from 4800
    baud) nothing is lost; below, DE may fall too late for a quick answer, which is asked again."""
    wire, bus = line(monkeypatch, baud, "N", 1)
    meter = registers.Meter(METER)
    bus.add(meter, 1, 1000)
    late = Random(baud)
    worst_ms = 0
    for _ in range(600):
        wire.run(bus, 1000, late)
        if meter.energy_wh is not None:
            assert 0 <= wire.us / 1000 - meter.energy_wh < 10_000, "never an old number"
            worst_ms = max(worst_ms, int(wire.us / 1000) - meter.at)
    assert wire.cut == 0 and wire.most_held_us <= held_ms(baud) * 1000
    assert meter.readings > 400 and meter.failed == 0 and worst_ms < 10_000
    if baud >= 4800:
        assert wire.lost == 0 and counted(meter) == {}
    else:
        assert wire.lost > 0


@each_baud
def test_a_long_request_does_not_hold_the_loop_longer(monkeypatch, baud):
    """A signing meter is written up to 246 bytes at once: at 1200 baud for two seconds."""

    class Written:
        """A meter to the bus: one write after the other."""

        wanted, switch_ms, timeout_ms, failed = True, 0, TIMEOUT_MS, 0
        done = 0

        def begin(self, identify: bool) -> None:
            self.block = signing.write(100, bytes(246))

        def accept(self, data: Any, at: int) -> None:
            self.done += 1
            self.block = None

        def complete(self, now: int) -> None:
            self.begin(False)

        def __init__(self) -> None:
            self.counts = [0] * modbus.OUTCOMES
            self.begin(True)

    wire, bus = line(monkeypatch, baud, "E", 2)
    meter = Written()
    bus.add(meter, 1, 1000)
    wire.run(bus, 20_000)
    assert meter.done >= 6 and wire.cut == wire.lost == 0 and sum(meter.counts) == 0
    assert wire.most_held_us <= (rs485.SPIN_MS + 2) * 1000


def held_ms(baud: int) -> Fraction:
    """What the firmware's page says how long a read holds the loop."""
    page = (paths.FIRMWARE / "README.md").read_text()
    (row,) = re.findall(rf"^\| {baud} \|.*$", page, re.M)
    return Fraction(row.split("|")[3].strip())
