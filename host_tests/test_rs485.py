"""The RTU master against a scripted line, in virtual time: one turn every 10 ms, no sleep."""

import json
import struct
import subprocess
from collections.abc import Callable

import pytest
from hal.rs485 import Rs485
from pymodbus.framer.rtu import FramerRTU
from wattlock import modbus, registers

from tools import paths

SDM630 = {
    "meter": "sdm630", "function": 4, "max_registers": 80, "timeout_ms": 500, "switch_ms": 200,
    "registers": {
        "energy_import_wh": [72, "f32", 1000], "power_w": [52, "f32"],
        "current_l1_ma": [6, "f32", 1000], "serial": [[3, 64512], "u32"]},
}  # fmt: skip
CHAR_US = 1042  # 9600 8N1
TURN_MS = 10


def framed(data: bytes) -> bytes:
    return data + FramerRTU.compute_CRC(data).to_bytes(2, "big")


class Slave:
    """A meter that answers 40 ms after a request, unless told otherwise."""

    def __init__(self, unit: int = 1) -> None:
        self.unit = unit
        self.wh = 1_234_567
        self.serial = 12345678
        self.delay_ms = 40
        self.asked: list[tuple[int, int, int]] = []
        self.twist: Callable[[bytes], bytes | None] = lambda reply: reply

    def words(self, function: int, address: int, count: int) -> bytes:
        if function == 3:
            assert (address, count) == (64512, 2)
            return struct.pack(">I", self.serial)
        data = bytearray(2 * count)
        for at, value in ((6, 16.1), (52, 11_000.4), (72, self.wh / 1000)):
            if address <= at < address + count:
                struct.pack_into(">f", data, 2 * (at - address), value)
        return bytes(data)

    def answer(self, function: int, address: int, count: int) -> bytes | None:
        self.asked.append((function, address, count))
        data = self.words(function, address, count)
        return self.twist(framed(bytes((self.unit, function, len(data))) + data))


class Line:
    """UART, DE pin and clock in one: bytes are there when their time has come."""

    def __init__(self, *slaves: Slave) -> None:
        self.now = 1000
        self.slaves = {slave.unit: slave for slave in slaves}
        self.coming: list[tuple[int, bytes]] = []
        self.input = b""
        self.requests: list[tuple[int, bytes]] = []
        self.levels: list[int] = []
        self.last_byte_at = 0

    # the pin
    def value(self, level: int) -> None:
        self.levels.append(level)

    # the UART
    def write(self, frame) -> int:
        frame = bytes(frame)
        assert framed(frame[:-2]) == frame, "a request with a good CRC"
        assert self.now - self.last_byte_at >= 10, "at least 10 ms after the last byte"
        assert not self.input, "input is flushed before a request"
        self.requests.append((self.now, frame))
        slave = self.slaves.get(frame[0])
        if slave is not None:
            reply = slave.answer(frame[1], *struct.unpack(">HH", frame[2:6]))
            if reply:
                self.say(slave.delay_ms, reply)
        return len(frame)

    def say(self, delay_ms: int, data: bytes) -> None:
        """Bytes on the line, each in its own time."""
        for i in range(len(data)):
            at = self.now + delay_ms + (i + 1) * CHAR_US // 1000
            self.coming.append((at, data[i : i + 1]))

    def flush(self) -> None:
        self.levels.append(-1)

    def _arrive(self) -> None:
        for at, byte in sorted(self.coming, key=lambda c: c[0]):
            if at <= self.now:
                self.input += byte
                self.last_byte_at = at
        self.coming = [c for c in self.coming if c[0] > self.now]

    def any(self) -> int:
        self._arrive()
        return len(self.input)

    def readinto(self, buffer) -> int:
        self._arrive()
        n = min(len(buffer), len(self.input))
        buffer[:n], self.input = self.input[:n], self.input[n:]
        return n

    def run(self, bus: Rs485, ms: int) -> None:
        end = self.now + ms
        while self.now < end:
            self.now += TURN_MS
            bus.turn(self.now)


def bus_of(line: Line, de=None) -> Rs485:
    return Rs485(line, de, modbus, lambda a, b: a - b, CHAR_US)


@pytest.fixture
def slave():
    return Slave()


@pytest.fixture
def line(slave):
    return Line(slave)


@pytest.fixture
def meter():
    return registers.Meter(SDM630)


@pytest.fixture
def bus(line, meter):
    bus = bus_of(line)
    bus.add(meter, 1, 1000)
    return bus


def dropped(meter: registers.Meter) -> dict[str, int]:
    return {modbus.name(i): n for i, n in enumerate(meter.counts[:-1]) if n}


def test_a_poll_is_the_serial_number_once_and_one_block(line, slave, bus, meter):
    line.run(bus, 5500)
    assert (meter.serial, meter.energy_wh, meter.power_w, meter.current_ma) == (
        "12345678", 1_234_567, 11_000, 16_100)  # fmt: skip
    assert slave.asked == [(3, 64512, 2)] + [(4, 6, 68)] * 6
    assert (meter.readings, meter.failed, meter.error, dropped(meter)) == (6, 0, 0, {})
    assert line.now - meter.at < 1000


def test_values_belong_to_one_complete_reading(line, slave, bus, meter):
    while len(slave.asked) < 2:
        line.run(bus, TURN_MS)
    assert slave.asked == [(3, 64512, 2), (4, 6, 68)]
    assert (meter.readings, meter.serial, meter.energy_wh) == (0, None, None)


def test_demand_polls_at_once(line, slave, bus, meter):
    line.run(bus, 3000)
    readings = meter.readings
    while meter.readings == readings:
        line.run(bus, TURN_MS)
    n = len(slave.asked)
    meter.demand()
    slave.wh = 1_234_600
    line.run(bus, 2 * TURN_MS)
    assert len(slave.asked) == n + 1
    line.run(bus, 300)
    assert meter.energy_wh == 1_234_600


def twisted(data: bytes, at: int, value: int) -> bytes:
    return data[:at] + bytes([value]) + data[at + 1 :]


FAULTS = {
    "timeout": lambda r: None,
    "crc": lambda r: twisted(r, 4, r[4] ^ 1),
    "short": lambda r: r[:40],
    "long": lambda r: b"\x00\xff" + r + b"\x55",
    "unit": lambda r: framed(b"\x02" + r[1:-2]),
    "function": lambda r: framed(twisted(r[:-2], 1, 3)),
    "length": lambda r: framed(b"\x01\x04\x04ABCD"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_wrong_reply_is_dropped_counted_and_asked_for_again(line, slave, bus, meter, name):
    line.run(bus, 2500)
    wh = meter.energy_wh
    slave.wh = 1_234_999
    readings = meter.readings
    slave.twist = FAULTS[name]
    while meter.error == 0:
        line.run(bus, TURN_MS)
    slave.twist = lambda reply: reply
    assert meter.energy_wh == wh and meter.readings == readings, "a dropped reply changes nothing"
    line.run(bus, 1000)
    assert meter.energy_wh == 1_234_999
    counted = dropped(meter)
    wrong = counted.pop(name, 0) or counted.pop("crc", 0)  # noise: cut where the reply should end
    assert wrong == 1
    assert set(counted) <= {"late"}
    assert meter.failed == 0 and meter.error == 0


def test_every_fault_for_good_fails_the_poll_and_never_a_number(line, slave, bus, meter):
    for twist in FAULTS.values():
        slave.twist = twist
        line.run(bus, 6000)
        assert meter.readings == 0 and meter.energy_wh is None and meter.failed > 0
        assert meter.error != 0


def test_an_exception_is_told_apart_and_ends_the_wait_early(line, slave, bus, meter):
    line.run(bus, 2500)
    slave.twist = lambda reply: framed(b"\x01\x84\x06")  # slave busy
    before = meter.readings
    while meter.error == 0:
        line.run(bus, TURN_MS)
    assert modbus.name(meter.error) == "exception 6"
    assert line.now - line.requests[-1][0] < 250, "not the whole 500 ms"
    assert meter.counts[-1] == 1 and meter.readings == before


def test_a_late_reply_is_not_taken_for_the_next(line, slave, bus, meter):
    line.run(bus, 2500)
    slave.delay_ms = 700  # of 500, and the time on the wire
    asked = len(slave.asked)
    while len(slave.asked) == asked:
        line.run(bus, TURN_MS)
    slave.wh, slave.delay_ms = 1_300_000, 40
    line.run(bus, 2000)
    assert meter.energy_wh == 1_300_000
    assert dropped(meter) == {"timeout": 1, "late": 1}


def test_bytes_of_nobody_are_discarded_before_a_request(line, slave, bus, meter):
    line.run(bus, 2300)
    line.say(0, b"\x01\x04\x04AAAA")
    line.run(bus, 2000)
    assert dropped(meter) == {"late": 1}
    assert meter.energy_wh == slave.wh


def test_a_dead_meter_is_asked_ever_more_rarely_and_found_again(line, slave, bus, meter):
    line.run(bus, 2500)
    slave.twist = FAULTS["timeout"]
    at = len(line.requests)
    line.run(bus, 120_000)
    times = [t for t, _ in line.requests[at:]]
    assert 10 <= len(times) <= 40, "retries and back-off, not a storm"
    assert times[-1] - times[0] > 60_000, "it is never given up"
    assert meter.failed >= 3
    failed = meter.failed
    line.run(bus, 31_000)
    assert meter.failed > failed, "at least every half minute"
    slave.twist = lambda reply: reply
    meter.demand()
    line.run(bus, 1500)
    assert meter.failed == 0 and meter.error == 0


def test_a_meter_exchanged_while_it_was_silent_is_seen_with_the_first_reading(line, slave, bus, meter):  # noqa: E501
    line.run(bus, 2500)
    slave.twist = FAULTS["timeout"]
    while meter.failed == 0:
        line.run(bus, TURN_MS)
    slave.twist, slave.serial, slave.wh = (lambda reply: reply), 777, 5
    readings = meter.readings
    while meter.readings == readings:
        assert (meter.serial, meter.energy_wh) == ("12345678", 1_234_567)
        line.run(bus, TURN_MS)
    assert (meter.serial, meter.energy_wh) == ("777", 5)


def test_the_serial_number_is_read_again_every_few_minutes(line, slave, bus, meter):
    line.run(bus, 10 * 60_000)
    serials = [asked for asked in slave.asked if asked[0] == 3]
    assert len(serials) in (2, 3)


def test_de_is_high_from_before_the_first_bit_to_the_last(slave):
    line = Line(slave)
    meter = registers.Meter(SDM630)
    bus = bus_of(line, line)
    bus.add(meter, 1, 1000)
    assert line.levels == [0], "the line is left alone at the start"
    line.run(bus, 1500)
    assert meter.readings > 0
    assert line.levels == [0] + [1, -1, 0] * len(line.requests), "up, write, flush, down"


def test_de_at_1200_baud_holds_the_loop_for_the_end_of_a_request_only(slave):
    line = Line(slave)
    slave.delay_ms = 200
    bus = Rs485(line, line, modbus, lambda a, b: a - b, 9167)
    bus.add(registers.Meter(SDM630), 1, 1000)
    while not line.requests:
        line.run(bus, TURN_MS)
    assert line.levels == [0, 1]
    sent_at = line.requests[0][0]
    while line.levels == [0, 1]:
        line.run(bus, TURN_MS)
    assert line.levels == [0, 1, -1, 0]
    assert 8 * 9.167 - 20 <= line.now - sent_at <= 8 * 9.167 + TURN_MS


def test_three_meters_share_the_line_fairly_and_a_dead_one_does_not_starve_them():
    slaves = [Slave(1), Slave(2), Slave(3)]
    line = Line(*slaves)
    bus = bus_of(line)
    meters = [registers.Meter(SDM630) for _ in slaves]
    for unit, meter in enumerate(meters, 1):
        bus.add(meter, unit, 1000)
    line.run(bus, 60_000)
    counts = [m.readings for m in meters]
    assert max(counts) - min(counts) <= 1 and min(counts) > 20
    slaves[1].twist = FAULTS["timeout"]
    before = [m.readings for m in meters]
    line.run(bus, 60_000)
    gained = [m.readings - b for m, b in zip(meters, before, strict=True)]
    assert gained[1] == 0 and abs(gained[0] - gained[2]) <= 1 and gained[0] > 20
    assert meters[0].failed == meters[2].failed == 0


def test_after_a_change_of_slave_there_is_the_pause_that_the_meter_asks_for():
    line = Line(Slave(1), Slave(2))
    bus = bus_of(line)
    for unit in (1, 2):
        bus.add(registers.Meter(SDM630), unit, 1000)
    last = None
    for _ in range(2000):
        line.run(bus, TURN_MS)
        if line.requests and line.requests[-1] is not last:
            if last is not None and last[1][0] != line.requests[-1][1][0]:
                assert line.requests[-1][0] - line.last_byte_at >= 200
            last = line.requests[-1]
    assert last is not None


def test_a_babbling_line_neither_holds_the_loop_nor_makes_a_number(line, slave, meter):
    calls = 0

    class Babble(Line):
        def write(self, frame):
            return len(frame)

        def any(self):
            nonlocal calls
            calls += 1
            return 64

        def readinto(self, buffer):
            buffer[:64] = b"\x55" * 64
            return 64

    babble = Babble(slave)
    bus = bus_of(babble)
    bus.add(meter, 1, 1000)
    for _ in range(1000):
        calls = 0
        babble.run(bus, TURN_MS)
        assert calls < 20
    assert meter.readings == 0 and meter.failed > 0


def test_after_an_exception_the_next_turn_goes_on(line, slave, bus, meter):
    line.run(bus, 2500)
    readings = meter.readings

    class Broken(Exception):
        pass

    def fails() -> int:
        raise Broken

    works, bus._uart.readinto = bus._uart.readinto, lambda data: fails()
    with pytest.raises(Broken):
        line.run(bus, 2000)
    bus._uart.readinto = works
    line.run(bus, 3000)
    assert meter.readings >= readings + 2 and meter.energy_wh == 1_234_567


def test_ticks_may_wrap(line, slave, meter):
    period = 1 << 30

    def diff(a, b):
        return ((a - b + period // 2) % period) - period // 2

    bus = Rs485(line, None, modbus, diff, CHAR_US)
    bus.add(meter, 1, 1000)
    line.run(bus, 2000)
    shift = period - line.now - 1500
    for t in range(0, 3000, TURN_MS):
        line.now += TURN_MS
        bus.turn((line.now + shift) % period)
        assert meter.failed == 0, t
    assert dropped(meter) == {}



STEADY = """
import gc, sys
sys.path.insert(0, sys.argv[1])
from hal.rs485 import Rs485
from wattlock import modbus, registers
import json

class Uart:
    def __init__(self, replies):
        self.replies, self.reply, self.here = replies, None, 0
    def any(self):
        return self.here
    def write(self, frame):
        self.reply = self.replies[frame[1]]
        self.here = len(self.reply)
    def readinto(self, data):
        for i in range(self.here):
            data[i] = self.reply[i]
        n, self.here = self.here, 0
        return n
    def flush(self):
        pass

class Pin:
    def value(self, level):
        pass

with open(sys.argv[2]) as given:
    replies, description = json.load(given)
replies = {int(k): bytes.fromhex(v) for k, v in replies.items()}
bus = Rs485(Uart(replies), Pin(), modbus, lambda a, b: a - b)
meter = registers.Meter(description)
bus.add(meter, 1, 1000)

def run(now, turns):
    before = gc.mem_alloc()
    for _ in range(turns):
        now += 10
        bus.turn(now)
    return gc.mem_alloc() - before

run(0, 500)
gc.collect()
gc.disable()
run(5000, 500)
readings = meter.readings
allocated = run(10000, 2000)
print(json.dumps([allocated, meter.readings - readings, meter.serial, meter.energy_wh,
                  meter.power_w, meter.current_ma]))
"""


def test_a_steady_poll_allocates_nothing_in_the_vm(micropython, tmp_path):
    slave = Slave()
    slave.wh = 12_345_678  # in kWh, an f32 resolves 1 Wh up to 16,384
    replies = {3: slave.answer(3, 64512, 2), 4: slave.answer(4, 6, 68)}
    given = tmp_path / "given.json"
    given.write_text(json.dumps([{k: (v or b"").hex() for k, v in replies.items()}, SDM630]))
    done = subprocess.run(
        [micropython, "-c", STEADY, str(paths.FIRMWARE), str(given)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout) == [0, 20, "12345678", 12_345_678, 11_000, 16_100]
