"""The TCP master: scripted in virtual time, and in the VM against pymodbus."""

import json
import socket
import struct
import subprocess
from collections.abc import Callable

import pytest
from hal.tcp import Tcp
from pymodbus.server import ModbusTcpServer
from pymodbus.simulator import DataType, SimData, SimDevice
from wattlock import modbus, registers

from tools import paths
from tools.meter import catalog
from tools.meter.simulator import SimulatedMeter, Simulator, running

DESCRIPTION = {
    "meter": "x", "function": 4, "timeout_ms": 500,
    "registers": {"energy_import_wh": [0, "u32"], "power_w": [2, "i32"]},
}  # fmt: skip
TURN_MS = 10


class Server:
    """A host with a meter: connections that come up, answer, hang or break as told."""

    def __init__(self) -> None:
        self.now = 0
        self.wh = 1000
        self.up_after_ms = 20
        self.delay_ms = 30
        self.refuse = False
        self.twist: Callable[[bytes], bytes | None] = lambda reply: reply
        self.connections: list[Connection] = []

    def connect(self) -> "Connection":
        if self.refuse:
            raise OSError("refused")
        self.connections.append(Connection(self))
        return self.connections[-1]

    def run(self, bus: Tcp, ms: int) -> None:
        for _ in range(ms // TURN_MS):
            self.now += TURN_MS
            bus.turn(self.now)


class Connection:
    def __init__(self, server: Server) -> None:
        self.server = server
        self.opened_at = server.now
        self.coming: list[tuple[int, bytes]] = []
        self.asked: list[bytes] = []
        self.closed = False
        self.ended = False

    def connected(self) -> bool:
        return self.server.now - self.opened_at >= self.server.up_after_ms

    def write(self, frame) -> None:
        assert self.connected() and not self.closed
        frame = bytes(frame)
        self.asked.append(frame)
        assert frame[2:6] + frame[7:] == bytes.fromhex("0000 0006 04 0000 0004")
        data = struct.pack(">Ii", self.server.wh, 11_000)
        reply = frame[:2] + b"\0\0\0\x0b" + frame[6:7] + b"\4\x08" + data
        reply = self.server.twist(reply)
        if reply:
            self.coming.append((self.server.now + self.server.delay_ms, reply))

    def readinto(self, buffer) -> int | None:
        assert not self.closed
        here = b"".join(data for at, data in self.coming if at <= self.server.now)
        if not here:
            return 0 if self.ended else None
        self.coming = [(at, data) for at, data in self.coming if at > self.server.now]
        n = min(len(buffer), len(here))
        buffer[:n] = here[:n]
        if here[n:]:
            self.coming.insert(0, (0, here[n:]))
        return n

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def server():
    return Server()


@pytest.fixture
def meter():
    return registers.Meter(DESCRIPTION)


@pytest.fixture
def bus(server, meter):
    bus = Tcp(server.connect, modbus, lambda a, b: a - b)
    bus.add(meter, 1, 1000)
    return bus


def dropped(meter) -> dict[str, int]:
    return {modbus.name(i): n for i, n in enumerate(meter.counts[:-1]) if n}


def test_one_connection_is_kept_and_transactions_differ(server, bus, meter):
    server.run(bus, 5500)
    (connection,) = server.connections
    assert (meter.energy_wh, meter.power_w, meter.serial) == (1000, 11_000, "")
    assert meter.readings == len(connection.asked) == 6
    assert len({frame[:2] for frame in connection.asked}) == 6
    assert dropped(meter) == {}


def test_a_reply_may_come_in_pieces(server, bus, meter):
    def in_pieces(reply: bytes) -> None:
        for i in range(len(reply)):
            server.connections[-1].coming.append((server.now + 20 + 10 * i, reply[i : i + 1]))

    server.twist = in_pieces
    server.run(bus, 2500)
    assert meter.readings == 3 and dropped(meter) == {}


def test_a_late_reply_is_skipped_by_its_transaction(server, bus, meter):
    server.twist = lambda reply: b"\xff\xff" + reply[2:] + reply
    server.run(bus, 1500)
    assert meter.energy_wh == 1000
    assert set(dropped(meter)) == {"transaction"}
    assert len(server.connections) == 1


@pytest.mark.parametrize(
    ("name", "twist"),
    [
        ("timeout", lambda reply: None),
        ("short", lambda reply: reply[:-1]),
        ("long", lambda reply: reply + b"\0"),
        ("protocol", lambda reply: reply[:2] + b"\0\1" + reply[4:]),
        ("unit", lambda reply: reply[:6] + b"\2" + reply[7:]),
        ("function", lambda reply: reply[:7] + b"\3" + reply[8:]),
        ("length", lambda reply: reply[:4] + b"\0\7\1\4\4" + reply[9:13]),
        ("short", lambda reply: reply[:4] + b"\xff\xff" + reply[6:] + bytes(300)),
    ],
)
def test_a_wrong_reply_is_dropped_and_the_connection_built_anew(server, bus, meter, name, twist):
    server.run(bus, 500)
    readings = meter.readings
    server.wh, server.twist = 2000, twist
    while meter.error == 0:
        server.run(bus, TURN_MS)
    assert meter.readings == readings and meter.energy_wh == 1000
    server.twist = lambda reply: reply
    server.run(bus, 3000)
    assert meter.energy_wh == 2000 and meter.error == 0
    assert dropped(meter) == {name: 1}
    first, second = server.connections
    assert first.closed and not second.closed


def units(server: Server, bus: Tcp, dead: int) -> list[registers.Meter]:
    """Units 1 to 3 behind one host; one of them does not answer."""
    meters = [registers.Meter(DESCRIPTION) for _ in range(3)]
    for unit, meter in enumerate(meters, 1):
        bus.add(meter, unit, 1000)
    server.twist = lambda reply: None if reply[6] == dead else reply
    return meters


@pytest.mark.parametrize("dead", (0, 1, 2, 3))
def test_units_behind_one_host_share_its_connection_and_a_dead_one_starves_nobody(server, dead):
    bus = Tcp(server.connect, modbus, lambda a, b: a - b)
    meters = units(server, bus, dead)
    alive = [meter for unit, meter in enumerate(meters, 1) if unit != dead]
    longest_ms = 0
    for _ in range(6000):
        server.run(bus, TURN_MS)
        if all(meter.readings for meter in alive):
            longest_ms = max(longest_ms, *(server.now - meter.at for meter in alive))
    assert [len(server.connections), *(sum(m.counts) for m in alive)] == [1] + [0] * len(alive)
    counts = [meter.readings for meter in alive]
    assert max(counts) - min(counts) <= 1 and min(counts) >= 50
    # a poll's second, and the time that the dead unit is given to answer
    assert longest_ms <= 1000 + (500 if dead else 0) + 3 * 50
    if dead:
        gone = meters[dead - 1]
        assert gone.readings == 0 and gone.failed >= 3
        server.twist = lambda reply: reply
        gone.demand()
        server.run(bus, 1000)
        assert gone.readings and len(server.connections) == 1


def test_a_late_answer_is_skipped_and_the_connection_kept(server):
    bus = Tcp(server.connect, modbus, lambda a, b: a - b)
    late, *_ = meters = units(server, bus, 0)
    server.run(bus, 900)
    server.delay_ms, server.wh = 700, 1111
    while not late.error:
        server.run(bus, TURN_MS)
    server.delay_ms, server.wh = 30, 2222
    server.run(bus, 2000)
    assert [meter.energy_wh for meter in meters] == [2222] * 3
    assert sum(meter.counts[modbus.TRANSACTION] for meter in meters) == 1
    assert len(server.connections) == 1


def test_a_host_that_has_gone_silent_is_connected_to_anew(server):
    bus = Tcp(server.connect, modbus, lambda a, b: a - b)
    meters = units(server, bus, 0)
    server.run(bus, 1500)
    server.twist = lambda reply: None
    server.run(bus, 20_000)
    assert server.connections[0].closed and all(meter.failed for meter in meters)
    server.twist = lambda reply: reply
    server.run(bus, 31_000)
    assert not any(meter.failed for meter in meters)


def test_an_exception_leaves_the_connection_in_step(server, bus, meter):
    server.run(bus, 500)
    server.twist = lambda reply: reply[:4] + b"\0\3\1\x84\6"
    server.run(bus, 1500)
    assert meter.counts[-1] > 0
    server.twist = lambda reply: reply
    server.run(bus, 3000)
    assert meter.error == 0 and len(server.connections) == 1


def test_a_closed_connection_is_built_anew(server, bus, meter):
    server.run(bus, 500)
    server.connections[0].ended = True
    server.twist = lambda reply: None
    server.run(bus, 1000)
    assert dropped(meter) == {"offline": 1}
    server.twist = lambda reply: reply
    server.run(bus, 3000)
    assert meter.error == 0 and meter.readings > 1


@pytest.mark.parametrize("refused", (True, False), ids=("refused", "silent"))
def test_a_host_that_is_not_there_fails_polls_and_is_found_again(server, bus, meter, refused):
    server.refuse = refused
    server.up_after_ms = 1 << 30
    server.run(bus, 60_000)
    assert meter.failed >= 2 and meter.readings == 0
    assert set(dropped(meter)) == {"offline"}
    assert sum(meter.counts) < 30, "back-off, not a storm"
    server.refuse, server.up_after_ms = False, 20
    server.run(bus, 31_000)
    assert meter.failed == 0 and meter.energy_wh == 1000


IN_THE_VM = """
import gc, json, sys, time
sys.path.insert(0, sys.argv[1])
from hal.tcp import open_tcp
from wattlock import modbus, registers
with open(sys.argv[2]) as given:
    description = json.load(given)
bus = open_tcp({"host": "127.0.0.1", "port": int(sys.argv[3])}, modbus)
meter = registers.Meter(description)
bus.add(meter, 1, 1)

def readings(n):
    begun = time.ticks_ms()
    while meter.readings < n and time.ticks_diff(time.ticks_ms(), begun) < 20000:
        bus.turn(time.ticks_ms())
    return meter.readings

readings(5)
gc.collect()
gc.disable()
readings(10)
before = gc.mem_alloc()
readings(20)
allocated = gc.mem_alloc() - before
print(json.dumps([allocated, meter.readings, meter.serial, meter.energy_wh, meter.power_w]))
"""


def test_the_vm_reads_pymodbus_and_a_steady_poll_allocates_nothing(micropython, tmp_path):
    description = catalog.load("eastron_sdm630_v2")
    given = tmp_path / "meter.json"
    given.write_text(json.dumps(description))
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        address = s.getsockname()
    device = SimulatedMeter(description, start_wh=7_654_321, load_w=11_040, speed=0)
    with running(lambda: Simulator(device, tcp=address)):
        done = subprocess.run(
            [micropython, "-c", IN_THE_VM, str(paths.FIRMWARE), str(given), str(address[1])],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout) == [0, 20, "12345678", 7_654_321, 11_040]


SHARED = """
import json, sys, time
sys.path.insert(0, sys.argv[1])
from hal.tcp import open_tcp
from wattlock import modbus, registers
bus = open_tcp({"host": "127.0.0.1", "port": int(sys.argv[3])}, modbus)
meters = []
for unit in (1, 9, 2, 3):  # nobody is 9
    with open(sys.argv[2]) as given:
        meters.append(registers.Meter(json.load(given)))
    bus.add(meters[-1], unit, 50)
gone = meters.pop(1)
apart = 0

def run(n):
    global apart
    begun = time.ticks_ms()
    while meters[0].readings < n and time.ticks_diff(time.ticks_ms(), begun) < 40000:
        bus.turn(time.ticks_ms())
        counts = [meter.readings for meter in meters]
        apart = max(apart, max(counts) - min(counts))

run(60)
print(json.dumps([[m.energy_wh for m in meters], apart, sum([sum(m.counts) for m in meters]),
                  gone.failed, gone.readings]))
"""


class Several(Simulator):
    """Several units behind one host, each with registers that stand still. `connections`: True
    for each that began, False for each that ended."""

    def __init__(self, shown: dict[int, dict[int, int]], address: tuple[str, int]) -> None:
        devices = [SimDevice(0, SimData(0, datatype=DataType.REGISTERS))]  # all that are not there
        for unit, words in shown.items():
            first, end = min(words), max(words) + 1
            values = [words.get(at, 0) for at in range(first, end)]
            devices.append(
                SimDevice(unit, SimData(first, values=values, datatype=DataType.REGISTERS))
            )
        self.connections: list[bool] = []
        self._server = ModbusTcpServer(
            devices,
            address=address,
            trace_packet=lambda sending, data: b"" if sending and data[6] not in shown else data,
            trace_connect=self.connections.append,
        )


def test_the_vm_reads_several_units_over_one_connection_of_pymodbus(micropython, tmp_path):
    """One of four never answers. The others take turns, nothing of theirs is dropped, and the
    connection is one."""
    description = catalog.load("eastron_sdm630_v2") | {"timeout_ms": 400}
    given = tmp_path / "meter.json"
    given.write_text(json.dumps(description))
    energies = {1: 1_000_001, 2: 2_000_002, 3: 3_000_003}
    shown = {
        unit: SimulatedMeter(description, start_wh=wh, speed=0).registers()
        for unit, wh in energies.items()
    }
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        address = s.getsockname()
    with running(lambda: Several(shown, address)) as server:
        done = subprocess.run(
            [micropython, "-c", SHARED, str(paths.FIRMWARE), str(given), str(address[1])],
            capture_output=True, text=True, timeout=100, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    read, apart, dropped_of_others, failed, answered = json.loads(done.stdout)
    assert read == list(energies.values())
    assert apart <= 2 and dropped_of_others == 0
    assert failed >= 1 and answered == 0
    assert server.connections.count(True) == 1


GONE = """
import gc, json, sys
sys.path.insert(0, sys.argv[1])
from hal.tcp import Connection, Tcp
from wattlock import modbus, registers

class Host:  # units 1 to 3 answer at once, 9 never does
    def __init__(self):
        self.reply = bytearray(bytes.fromhex("00000000000b000408000003e800002af8"))
        self.here = 0

    def connected(self):
        return True

    def write(self, frame):
        if frame[6] != 9:
            self.reply[0] = frame[0]
            self.reply[1] = frame[1]
            self.reply[6] = frame[6]
            self.here = len(self.reply)

    def readinto(self, data):
        if not self.here:
            return None
        for i in range(self.here):
            data[i] = self.reply[i]
        here, self.here = self.here, 0
        return here

    def close(self):
        pass

def opened(connect, *units):
    bus = Tcp(connect, modbus, lambda a, b: a - b)
    for unit in units:
        with open(sys.argv[2]) as given:
            meters.append(registers.Meter(json.load(given)))
        bus.add(meters[-1], unit, 1000)
    return bus

def run(now, readings, failed):
    while meters[0].readings < readings or meters[-1].failed < failed:
        now += 10
        bus.turn(now)
    return now

def refused():
    return Connection("127.0.0.1", int(sys.argv[3]))

meters = []
told = []
before = now = 0  # a new name may cost a larger table of names
bus = opened(Host, 1, 2, 3, 9)
now = run(0, 100, 3)
gc.collect()
gc.disable()
before = gc.mem_alloc()
run(now, 1100, 9)
told.append(gc.mem_alloc() - before)
gc.enable()

bus = opened(refused, 1)
now = run(now, 0, 5)
gc.collect()
before = gc.mem_alloc()
now = run(now, 0, 1005)
gc.collect()
told.append(gc.mem_alloc() - before)
gc.disable()
before = gc.mem_alloc()
run(now, 0, 1006)
told.append(gc.mem_alloc() - before)
print(json.dumps(told))
"""


def test_what_does_not_answer_takes_no_heap_for_good(micropython, tmp_path):
    """A dead unit among others takes none at all. A host that refuses takes some for each attempt,
    which the collector has back: after a thousand polls all is as before."""
    given = tmp_path / "meter.json"
    given.write_text(json.dumps(DESCRIPTION))
    with socket.socket() as s:  # bound and not listening: it refuses, and nobody else gets it
        s.bind(("127.0.0.1", 0))
        done = subprocess.run(
            [micropython, "-c", GONE, str(paths.FIRMWARE), str(given), str(s.getsockname()[1])],
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    dead_unit, for_good, attempts = json.loads(done.stdout)
    assert dead_unit == 0
    # the collector keeps what a stale word of the stack looks like: once, not each time. A leak of
    # the smallest block that there is, 16 bytes, in each poll would be 16,000
    assert abs(for_good) < 1000
    assert 0 < attempts <= 3 * 600
