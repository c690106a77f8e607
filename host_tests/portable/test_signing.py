"""The procedures of meters that sign, and what a session owes, on a register file in memory.

What the makers published is checked in host_tests/test_signing.py; this is the same code where it
runs: in MicroPython.
"""

from binascii import a2b_base64, hexlify, unhexlify

from wattlock import app as wattlock_app
from wattlock import session, sign_bsm, sign_em580, sign_wm3m4
from wattlock.sign_wm3m4 import der
from wattlock.signing import Meter

from portable.bench import ANNA, KEY, STATION, Board, World

MAKERS = {"bsm": sign_bsm, "em580": sign_em580, "wm3m4": sign_wm3m4}
DESCRIPTION = {"meter": "x", "registers": {"energy_import_wh": [0, "u32"]}}
# r has a zero too many, s one that it needs (0xa1 would be negative): X.690, 8.3
PADDED = unhexlify("300802020005020200a1")
DER = unhexlify("3007020105020200a1")


class Device:
    """Registers, and what a write to one of them does."""

    def __init__(self, kind):
        self.words = {}
        self.kind = kind
        self.wh = 5000000
        self.written = []
        self.busy = 0  # answers of "not yet" before a signature is there
        self.put(0, self.wh.to_bytes(4, "big"))
        if kind == "bsm":
            self.put(40450, (4).to_bytes(2, "big") + b"\x30\x02ab")
        elif kind == "em580":
            self.put(9471, b"\0\0")
            self.put(9728, b"\x30\x02ab")
        else:
            self.put(8124, bytes(range(64)))
            self.words[7052] = 1

    def put(self, address, data):
        for i in range(0, len(data), 2):
            self.words[address + i // 2] = data[i] << 8 | (data[i + 1] if i + 1 < len(data) else 0)

    def text(self, address, count):
        return self.read(address, count).split(b"\0")[0].decode()

    def read(self, address, count):
        data = bytearray()
        for i in range(count):
            data.extend(self.words.get(address + i, 0).to_bytes(2, "big"))
        if self.waiting == address and count == 1:
            self.busy -= 1
            if self.busy < 0:
                self.waiting = None
                self.signed()
                return self.read(address, count)
        return bytes(data)

    waiting = None
    then = None

    def signed(self):
        self.then()

    def write(self, address, data):
        self.written.append((address, data))
        self.put(address, data)
        if self.kind == "bsm" and address in (41286, 41540):
            self.waiting = address
            self.then = lambda: self._snapshot(address)
        elif self.kind == "em580" and address == 28736:
            if data[1] == 0x42:
                self.words[28928] = 1
            else:
                self.waiting = 28928
                self.then = self._file
        elif self.kind == "wm3m4" and address == 7051:
            self.words[7000] = 1 if data[0] == 0x42 else 0
            self.words[7052] = 2
            self.waiting = 7052
            self.then = self._dataset

    def _snapshot(self, address):
        self.words[address] = 0
        at = 43295 if address == 41286 else 43795
        self.put(at, self.record(self.text(40399, 50)) + bytes(600))

    def _file(self):
        text = self.record(self.text(26880, 20))
        self.put(28944, text + b"\0")
        self.words[28929] = (len(text) + 1) // 2
        self.words[28928] = 2

    def _dataset(self):
        size = self.words[7056]
        text = self.read(7100, (size + 1) // 2)[:size]
        self.put(7612, text)
        self.put(8188, PADDED)
        self.words[7057] = size
        self.words[7058] = len(PADDED)
        self.words[7052] = 15

    def record(self, id):
        """Longer than a piece, so that it travels in several."""
        return ('OCMF|{"ID":"%s","X":"%s"}|{"SD":"00"}' % (id, "y" * 700)).encode()


class Bus:
    """The bus's side of a meter (hal/bus.py), one answer a turn."""

    def __init__(self, meter, device):
        self.meter = meter
        self.device = device
        self.begun = False
        self.dead = False

    def turn(self, now):
        meter = self.meter
        if not self.begun:
            self.begun = True
            meter.begin(True)
        block = meter.block
        if self.dead:
            meter.fail()
            self.begun = False
            return
        if block.function == 16:
            self.device.write(block.address, block.data)
            meter.accept(b"", 0)
        else:
            meter.accept(self.device.read(block.address, block.count), 0)
        if meter.block is None:
            meter.complete(now)


def meter_of(kind):
    return Meter(DESCRIPTION, MAKERS[kind])


def drive(meter, bus, turns=400):
    """The record, taken in pieces as it comes."""
    record = b""
    for now in range(turns):
        if meter.why is not None:
            return None
        if meter.settled:
            record += meter.take(480)
            if not meter.text:
                return record
        elif len(meter.text) >= 480:
            record += meter.take(480)
        bus.turn(now)
    raise AssertionError("never whole")


class Told:
    """What a meter is told of a session: a card's, at a time that is known."""

    uid = "04A1B2C3"
    card = True
    place = "MY-1 1"
    asked = False

    def __init__(self, session="S1"):
        self.session = session

    def at_s(self):
        return 1790000000


def test_each_procedure_gives_its_record():
    for kind in ("bsm", "em580", "wm3m4"):
        device = Device(kind)
        meter = meter_of(kind)
        bus = Bus(meter, device)
        device.busy = 3
        meter.sign("start", Told())
        start = drive(meter, bus)
        assert meter.ready and meter.why is None, kind
        device.busy = 3
        meter.sign("end", Told())
        end = drive(meter, bus)
        if kind == "wm3m4":
            assert start == b"" and end.startswith(b'OCMF|{"FV":"1.0",')
            assert end.endswith(b'|{"SD":"' + hexlify(DER) + b'"}')
            assert b'"ID":"04A1B2C3 S1","CT":"CBIDC","CI":"MY-1 1","RD":[]}' in end
            assert meter.key[-64:] == bytes(range(64)) and len(meter.key) == 91
        else:
            assert start == (device.record("S1") if kind == "bsm" else b"")
            assert end == device.record("S1")
            assert meter.key == b"\x30\x02ab"
        assert meter.energy_wh == 5000000 and meter.readings > 10, "readings go on between"
        for _ in range(10):
            bus.turn(0)
        if kind == "em580":
            assert device.written[-1] == (28928, b"\0\0"), "confirmed when it was taken"


def test_a_record_of_another_session_is_refused():
    for kind in ("em580", "wm3m4"):
        device = Device(kind)
        meter = meter_of(kind)
        bus = Bus(meter, device)
        meter.sign("start", Told("S1"))
        drive(meter, bus)
        meter.sign("end", Told("S2"))
        assert drive(meter, bus) is None and "another session" in meter.why, kind


def test_zeros_that_der_forbids():
    assert der(PADDED) == DER
    assert der(DER) == DER
    assert der(b"") == b"" and der(b"\x30\x01") == b"\x30\x01"


class SigningWorld(World):
    """The bench with a meter that signs behind a bus."""

    def boot(self):
        self.board = Board(self, self.config["evses"])
        self.meter = meter_of(self.kind)
        self.bus = Bus(self.meter, self.device)
        self.meter.poll = lambda: None
        self.board.meters = {1: self.meter}
        self.board.buses = [self.bus]
        self.app = wattlock_app.build(self.config, {"kid": 1, "key": KEY}, self.board)
        return self.app

    def signed(self):
        return b"".join([a2b_base64(r["data"]) for r in self.records("signed") if "data" in r])


def world(kind):
    w = SigningWorld()
    w.kind = kind
    w.device = Device(kind)
    w.boot()
    assert w.until(lambda: w.app.now() is not None and w.evse().ledger.register is not None)
    return w


def charge(w):
    w.pins[1].car = "C"
    w.ask("START_SESSION", {"evse": 1, "token": ANNA})
    assert w.until(lambda: w.evse().session and w.evse().session.phase == session.ENERGISED)
    w.run(5000)


def test_a_session_owes_its_record_until_it_is_durable():
    w = world("em580")
    charge(w)
    (start,) = w.records("start")
    assert start["signs"] is True
    assert w.evse().signing == [start["session_id"], ANNA]
    w.device.busy = 60  # it takes its time; the stop does not wait
    w.pins[1].car = "A"
    assert w.until(lambda: w.records("stop"), 8000)
    assert w.evse().signing is not None and not w.signed()
    w.cut(3000)
    assert w.until(lambda: w.evse().signing is None, 30000)
    w.run(1000)
    assert w.signed() == w.device.record(start["session_id"])
    rows = w.records("signed")
    assert [r["piece"] for r in rows] == [1, 2] and rows[-1]["of"] == 2
    assert rows[-1]["session_id"] == start["session_id"] and rows[-1]["nature"] == "end"
    assert w.device.text(28700, 20) == STATION + " 1"
    assert not w.troubles


def test_the_contactor_waits_for_the_start_and_not_for_ever():
    w = world("bsm")
    w.device.busy = 1000000
    w.pins[1].car = "C"
    w.ask("START_SESSION", {"evse": 1, "token": ANNA})
    assert w.until(lambda: w.evse().session is not None)
    began = w.ms
    w.run(15000)
    assert not w.pins[1].is_closed()
    assert w.until(lambda: w.pins[1].is_closed())
    assert 20000 <= w.ms - began <= 22000
    w.run(1000)
    assert [(r["nature"], r["failed"]) for r in w.records("signed")] == [("start", "late")]


def test_a_dead_meter_is_stated_and_the_next_driver_served():
    w = world("wm3m4")
    charge(w)
    w.bus.dead = True
    w.pins[1].car = "A"
    assert w.until(lambda: w.records("stop"), 8000)
    assert w.until(lambda: w.evse().signing is None, 70000)
    w.run(1000)
    assert [(r["nature"], r["failed"]) for r in w.records("signed")] == [("end", "late")]
    w.bus.dead = False
    charge(w)
    assert len(w.records("start")) == 2
