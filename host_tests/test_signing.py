"""Meters that sign, end to end on the bench: the real agent, bus and procedure, in virtual time,
against the makers' procedures as `tools.meter.signed` plays them.

What comes out is checked by the published keys where the maker published a record, and by
OpenSSL with the simulated meter's own key otherwise.
"""

import base64
import json
import socket
from pathlib import Path

import pytest
from hal.rs485 import Rs485
from portable.bench import ANNA, KEY, STATION, UNIX_MS, Board, World
from portable.test_signing import MAKERS, Told
from pymodbus.framer.rtu import FramerRTU
from wattlock import app as wattlock_app
from wattlock import modbus, session
from wattlock.sign_wm3m4 import der
from wattlock.signing import Meter, write

from tools.meter import catalog, signed, verify, wire
from tools.meter.simulator import SimulatedMeter, Simulator, running

DATA = Path(__file__).parent / "data"
PUBLISHED = json.loads((DATA / "ocmf.json").read_text())
BSM = {"start": PUBLISHED[0]["record"], "end": PUBLISHED[1]["record"], "key": PUBLISHED[0]["key"]}
EM580 = next(p for p in PUBLISHED if "EM580" in p["source"])
KEYS = ("bauer_bsm_ws36a", "cg_em580", "iskra_wm3m4")
MINUTE = 60000
STEP = 20


class Line:
    """A UART with the device at its other end: an answer is there when its time has come."""

    def __init__(self, world: "SigningWorld", unit: int) -> None:
        self.world = world
        self.unit = unit
        self.silent = False
        self.late_ms = 0
        self.requests: list[bytes] = []
        self._due = 0
        self._answer = b""

    def write(self, frame) -> int:
        frame = bytes(frame)
        self.requests.append(frame)
        assert FramerRTU.compute_CRC(frame[:-2]).to_bytes(2, "big") == frame[-2:]
        size = len(frame) + 8
        self._due = self.world.ms + 10 + size * 10_000 // 19_200 + self.late_ms
        self._answer = b"" if self.silent else self._reply(frame)
        return len(frame)

    def _reply(self, frame: bytes) -> bytes:
        device, signer = self.world.device, self.world.signer
        address, count = (int.from_bytes(frame[i : i + 2], "big") for i in (2, 4))
        if frame[1] == 16:
            assert frame[6] == 2 * count == len(frame) - 9 and count <= 123
            signer.write(address, signed.to_words(frame[7:-2]))
            reply = frame[:6]
        else:
            words = device.registers() | signer.registers()
            data = b"".join(words.get(address + i, 0).to_bytes(2, "big") for i in range(count))
            reply = bytes((self.unit, frame[1], 2 * count)) + data
        return reply + FramerRTU.compute_CRC(reply).to_bytes(2, "big")

    def any(self) -> int:
        return len(self._answer) if self.world.ms >= self._due else 0

    def readinto(self, data) -> int:
        data[: len(self._answer)] = self._answer
        size, self._answer = len(self._answer), b""
        return size

    def writes(self, address: int) -> list[bytes]:
        """The frames that wrote to this register."""
        return [f for f in self.requests if f[1] == 16 and f[2:4] == address.to_bytes(2, "big")]


class SigningWorld(World):
    """A site with one EVSE whose meter signs. The meter has a supply of its own."""

    def __init__(self, key: str, published: dict[str, str] | None = None) -> None:
        self.ms = 0
        self.description = catalog.load(key)
        self.device = SimulatedMeter(
            self.description, start_wh=1_000_000, now_ms=lambda: self.ms, speed=0
        )
        assert self.device.signer is not None
        kind = type(self.device.signer)
        self.signer = self.device.signer = kind(self.device, published)
        self.line = Line(self, self.description["bus"]["unit"])
        super().__init__()
        self.real = {}

    def boot(self):
        self.board = Board(self, self.config["evses"])
        self.meter = Meter(self.description, MAKERS[self.description["signs"]])
        bus = Rs485(self.line, None, modbus, lambda a, b: a - b, 573)
        bus.add(self.meter, self.line.unit)
        self.board.meters = {1: self.meter}
        self.board.buses = [bus]
        self.app = wattlock_app.build(self.config, {"kid": 1, "key": KEY}, self.board)
        return self.app

    def cut(self, off_ms=0, keeps_lock=True):
        self.pins[1].contactor_out = False
        self.board = self.app = None
        self.pass_ms(off_ms)
        return self.boot()

    def pass_ms(self, ms):
        flows = self.pins[1].is_closed() and self.pins[1].ready()
        self.device.load_w = self.power_w if flows else 0
        self.device.advance(ms)
        self.ms += ms

    def run(self, ms, step=STEP):
        end = self.ms + ms
        while self.ms < end:
            self.pass_ms(step)
            self.board.link.connected = self.online
            self.app.turn()
            while self.board.link.up:
                self.gateway.take(self.board.link.up.pop(0))

    # what these tests ask for

    def plug_and_start(self, token=ANNA, id=None):
        """A car comes and its driver starts from the app, under a session id if one is given."""
        self.pins[1].car = "C"
        data = {"evse": 1, "token": token} | ({"session_id": id} if id else {})
        self.ask("START_SESSION", data)

    def charge(self, token=ANNA, id=None, ms=2 * MINUTE):
        self.plug_and_start(token, id)
        assert self.until(lambda: self.energised())
        self.run(ms)

    def energised(self):
        s = self.evse().session
        return s is not None and s.phase == session.ENERGISED

    def leave(self):
        """The driver unplugs; the stop is durable within seconds, whatever the meter does."""
        before = len(self.records("stop"))
        self.pins[1].car = "A"
        assert self.until(lambda: len(self.records("stop")) > before, 8000)
        return self.records("stop")[-1]

    def finished(self, ms=70_000):
        """The record is owed no more, and the gateway has it."""
        durable = self.until(lambda: self.evse().signing is None, ms)
        self.run(1000)
        return durable

    def signed(self, nature: str) -> tuple[bytes, bytes]:
        """(record, public key) that the journal's pieces make."""
        rows = [r for r in self.records("signed") if r["nature"] == nature and "data" in r]
        rows = rows[-rows[-1]["of"] :]
        assert [r["piece"] for r in rows] == list(range(1, len(rows) + 1))
        data = b"".join(base64.b64decode(r["data"]) for r in rows)
        return data, base64.b64decode(rows[-1]["public_key"])

    def failures(self) -> list[tuple[str, str]]:
        return [(r["nature"], r["failed"]) for r in self.records("signed") if "failed" in r]


def world(key: str, published: dict[str, str] | None = None) -> SigningWorld:
    w = SigningWorld(key, published)
    w.boot()
    assert w.until(lambda: w.app.now() is not None and w.evse().ledger.register is not None)
    return w


# -- the makers' published records, untouched ----------------------------------------------------


def test_a_bsm_hands_over_its_published_start_and_end():
    w = world("bauer_bsm_ws36a", BSM)
    token = ANNA | {"uid": "contract-id: rfid:12345678abcdef"}
    w.charge(token)
    w.leave()
    assert w.finished()
    for nature in ("start", "end"):
        record, key = w.signed(nature)
        assert record.decode() == BSM[nature]
        assert verify.verdict(record, key)[0] == "valid"
    # frames from the maker's doc/examples/ocmf.md
    assert w.line.writes(0x9DCF) and w.line.writes(0x9D57)
    frame = w.line.writes(0x9D57)[0]
    told = b"contract-id: rfid:12345678abcdef".ljust(140, b"\0") + f"{STATION} 1".encode()
    assert frame[:7] == bytes.fromhex("2a109d570078f0") and frame[7:-2] == told.ljust(240, b"\0")
    assert not w.failures() and not w.troubles


def test_the_bsm_s_frames_are_those_of_its_document():
    """bsm-python doc/examples/ocmf.md and snapshots.md, requests as published, CRC included."""
    meta = b"contract-id: rfid:12345678abcdef".ljust(140, b"\0")
    meta += b"evse-id: DE*BDO*E8025334492*2".ljust(100, b"\0")
    frame = write(0x9D57, meta).rtu(0x2A, modbus)
    assert frame[:7].hex() == "2a109d570078f0" and frame[-2:].hex() == "195c"
    frame = write(0x9DCF, b"csc-sw-version: v1.2.34".ljust(100, b"\0")).rtu(0x2A, modbus)
    assert frame[:7].hex() == "2a109dcf003264" and frame[-2:].hex() == "f0c8"
    assert write(40524, 2).rtu(0x2A, modbus).hex() == "2a109e4c0001020002bca5"
    time = write(40260, bytes.fromhex("62c7e4000078"))
    assert time.rtu(0x2A, modbus).hex() == "2a109d4400030662c7e40000788d85"
    # the same over TCP: MODBUS Messaging on TCP/IP 1.0b, length from the unit on
    assert time.tcp(0x2A).hex() == "00000000000d" + "2a109d4400030662c7e4000078"


def test_an_em580_hands_over_its_published_file():
    record = EM580["record"]
    id = json.loads(record.split("|")[1])["TT"].rpartition("<=>")[2]
    w = world("cg_em580", {"end": record, "key": EM580["key"]})
    w.charge(id=id)
    w.leave()
    assert w.finished()
    data, key = w.signed("end")
    assert data.decode() == record
    assert verify.verdict(data, key)[0] == "valid"
    # EVerest helper.hpp: DER of a 384 bit key is 124 bytes, "DER length 0x7A + 2"
    assert len(key) == 124 and key[1] == 0x7A
    w.run(1000)
    assert w.signer.words[signed.Em580.STATE] == 0, "read, confirmed, free for the next"
    assert not w.failures()


def test_a_file_of_another_session_is_not_taken_for_this_one():
    record = EM580["record"]
    w = world("cg_em580", {"end": record, "key": EM580["key"]})
    w.charge(id="87654321-0000-0000-0000-000000000000")
    w.leave()
    assert w.finished()
    assert w.failures() == [("end", "a file of another session")]
    assert not [r for r in w.records("signed") if "of" in r]


# -- what every such meter does ------------------------------------------------------------------


@pytest.mark.parametrize("key", KEYS)
def test_a_session_is_signed_from_start_to_end(key):
    w = world(key)
    w.charge()
    stop = w.leave()
    assert w.finished()
    record, public = w.signed("end")
    assert verify.verdict(record, public)[0] == "valid"
    assert public == w.signer.key
    payload = json.loads(verify.parts(record)[0])
    rows = payload["RD"]
    if key == "bauer_bsm_ws36a":
        start, _ = w.signed("start")
        assert verify.verdict(start, public)[0] == "valid"
        rows = json.loads(verify.parts(start)[0])["RD"] + rows
        assert payload["X3"] == stop["session_id"] and payload["X2"] == f"{STATION} 1"
    else:
        assert stop["session_id"] in payload["TT" if key == "cg_em580" else "ID"]
        assert (payload["CT"], payload["CI"]) == ("CBIDC", f"{STATION} 1")
        assert (payload["IT"], payload["IF"]) == ("ISO14443", ["RFID_PLAIN"])
    assert ANNA["uid"] in payload["ID"]
    assert [row["TX"] for row in rows] == ["B", "E"]
    # no current before the signed start, none after the signed end: to the resolution of the meter
    assert stop["total_wh"] > 300
    assert rows[1]["RV"] - rows[0]["RV"] == stop["total_wh"]
    assert all(row["TM"].endswith("+0000 S") for row in rows), "the meter was told the time"
    assert all(len(json.dumps(r, separators=(",", ":"))) < 1024 for r in w.records("signed"))
    assert not w.failures() and not w.troubles


@pytest.mark.parametrize("key", KEYS)
def test_the_contactor_waits_for_the_signed_start(key):
    w = world(key)
    w.signer.sign_ms = 4000 if key != "cg_em580" else 0
    w.plug_and_start()
    assert w.until(lambda: w.evse().session is not None)
    began = w.ms
    assert w.until(lambda: w.pins[1].is_closed())
    if key != "cg_em580":  # its start is a command; the file is signed at the end
        assert w.ms - began >= 4000
    # while it waits, readings go on and the session is not charging
    assert w.meter.readings > 5
    w.run(MINUTE)
    kinds = [r["kind"] for r in w.records("period")]
    assert kinds == (["charging", "not_offered"] if key != "cg_em580" else [])
    w.leave()
    assert w.finished()
    assert verify.verdict(*w.signed("end"))[0] == "valid"


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("fault", ("fails", "hangs"))
def test_a_meter_that_does_not_sign_holds_up_no_stop_and_it_is_stated(key, fault):
    w = world(key)
    w.charge()
    w.signer.fault = fault
    stop = w.leave()
    assert stop["total_wh"] > 300 and stop["cause"] == "unplugged"
    assert w.finished()
    (failure,) = w.failures()
    assert failure[0] == "end"
    assert failure[1] != "late" if fault == "fails" else failure[1] == "late"
    # the next driver is served, and signed for
    w.signer.fault = None
    w.charge(ms=MINUTE)
    w.leave()
    assert w.finished()
    record, public = w.signed("end")
    assert verify.verdict(record, public)[0] == "valid"
    assert w.records("stop")[-1]["session_id"].encode() in record


@pytest.mark.parametrize("key", ("bauer_bsm_ws36a", "iskra_wm3m4"))
@pytest.mark.parametrize("fault", ("fails", "hangs"))
def test_a_start_that_is_not_signed_charges_without_and_says_so(key, fault):
    w = world(key)
    w.signer.fault = fault
    w.plug_and_start()
    assert w.until(lambda: w.energised(), 40_000)
    assert [nature for nature, _ in w.failures()] == ["start"]
    w.signer.fault = None
    w.run(MINUTE)
    w.leave()
    assert w.finished()
    if key == "bauer_bsm_ws36a":
        assert verify.verdict(*w.signed("end"))[0] == "valid"


@pytest.mark.parametrize("key", KEYS)
def test_a_late_signature_is_still_handed_over(key):
    w = world(key)
    w.charge()
    w.signer.sign_ms = 12_000
    w.leave()
    assert w.finished()
    assert verify.verdict(*w.signed("end"))[0] == "valid" and not w.failures()
    assert w.records("signed")[-1]["up_ms"] - w.records("stop")[0]["up_ms"] > 5000


@pytest.mark.parametrize("key", KEYS)
def test_the_next_driver_waits_for_the_last_record(key):
    w = world(key)
    w.charge(id="S1")
    w.signer.sign_ms = 12_000
    w.leave()
    w.plug_and_start(id="S2")
    assert w.until(lambda: w.energised(), 60_000)
    order = [(r["t"], r["session_id"]) for r in w.records() if r["t"] == "start" or "of" in r]
    assert order.index(("signed", "S1")) < order.index(("start", "S2"))


@pytest.mark.parametrize("key", KEYS)
def test_a_dead_meter_at_the_end_is_stated(key):
    w = world(key)
    w.charge()
    w.line.silent = True
    w.pins[1].car = "A"
    assert w.until(lambda: w.records("stop"), 10_000), "the stop waits 5 s for a reading, no more"
    assert w.finished()
    assert [nature for nature, _ in w.failures()] == ["end"]


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("after_ms", (100, 500, 900, 1300, 1700, 2100, 2500, 3000, 4000))
def test_a_power_cut_while_it_signs_loses_no_record(key, after_ms):
    w = world(key)
    w.charge()
    w.pins[1].car = "A"
    w.run(after_ms)
    w.cut(3000)
    assert w.until(lambda: len(w.records("stop")) == 1, 90_000)
    assert w.finished()
    record, public = w.signed("end")
    assert verify.verdict(record, public)[0] == "valid"
    assert w.records("stop")[0]["session_id"].encode() in record
    assert not w.failures()


@pytest.mark.parametrize("key", KEYS)
def test_a_session_that_a_cut_interrupts_goes_on_under_one_signature(key):
    w = world(key)
    w.charge()
    w.cut(6000)
    assert w.until(lambda: w.energised(), 60_000)
    w.run(MINUTE)
    stop = w.leave()
    assert w.finished()
    record, public = w.signed("end")
    assert verify.verdict(record, public)[0] == "valid"
    assert len(w.records("start")) == 1 and w.records("event")
    if key != "bauer_bsm_ws36a":
        rows = json.loads(verify.parts(record)[0])["RD"]
        assert rows[1]["RV"] - rows[0]["RV"] == stop["total_wh"]


@pytest.mark.parametrize("key", KEYS)
def test_a_meter_whose_own_supply_fails_still_signs_the_end(key):
    w = world(key)
    w.charge()
    w.signer.power_cycle()
    w.run(2000)
    w.leave()
    assert w.finished()
    assert verify.verdict(*w.signed("end"))[0] == "valid"


@pytest.mark.parametrize("key", KEYS)
def test_pieces_that_find_no_room_are_stated_and_nothing_else_suffers(key):
    w = world(key)
    w.charge()
    w.online = False
    inner = w.app.write

    def full(records, spare):
        if spare:
            w.app.journal.spared += 1
            return False
        return inner(records, spare)

    w.app.write = full
    w.pins[1].car = "A"
    assert w.until(lambda: w.evse().session is None and w.evse().signing is None, 20_000)
    w.online = True
    w.run(3000)
    assert w.failures() == [("end", "no room in the journal")]


def test_over_tcp_the_same_procedure():
    """A real socket and pymodbus' server: the register file of `simulate`, writes included."""
    description = catalog.load("bauer_bsm_ws36a")
    meter = Meter(description, MAKERS["bsm"])
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    device = SimulatedMeter(description, start_wh=1000, speed=0)
    assert device.signer is not None
    device.signer.sign_ms = 100
    with running(lambda: Simulator(device, tcp=("127.0.0.1", port), unit=42)):
        bus = wire.tcp_bus("127.0.0.1", port)
        bus.add(meter, 42, 50)
        assert wire.poll(bus, lambda: meter.readings > 0, 20)
        meter.sign("end", Told())
        assert wire.poll(bus, lambda: meter.settled or meter.why is not None, 30), meter.why
    assert meter.why is None
    record = bytes(meter.text)
    assert verify.verdict(record, meter.key)[0] == "valid"
    assert json.loads(verify.parts(record)[0])["X3"] == "S1"


# -- details of one maker ------------------------------------------------------------------------


def test_the_bsm_s_clock_is_set_only_when_it_is_off():
    w = world("bauer_bsm_ws36a")
    for _ in range(3):
        w.charge(ms=MINUTE)
        w.leave()
        assert w.finished()
    assert w.signer.times_set == 1
    (frame,) = w.line.writes(40260)
    assert abs(int.from_bytes(frame[7:11], "big") - UNIX_MS // 1000) < 60
    assert w.signer.unix_s is not None
    w.signer.unix_s += 40  # more than _DRIFT_S
    w.charge(ms=MINUTE)
    assert w.signer.times_set == 2


def test_a_meter_is_not_told_a_time_that_is_not_known():
    w = SigningWorld("iskra_wm3m4")
    w.boot()
    w.gateway.deaf = True
    w.pins[1].car = "C"
    w.run(3000)
    w.app.posts[1].ask(1, 0, ANNA, "WHITELIST")
    assert w.until(lambda: w.energised(), 30_000)
    assert not w.line.writes(7054)
    w.pins[1].car = "A"
    assert w.until(lambda: w.evse().session is None and w.evse().signing is None, 60_000)
    assert w.signer.unix_s is None


def test_a_transaction_that_nobody_ended_is_ended_before_the_next():
    for key in ("cg_em580", "iskra_wm3m4"):
        w = world(key)
        if key == "cg_em580":
            w.signer.words[signed.Em580.STATE] = 1
            w.signer._start = w.signer.reading("B")
        else:
            w.signer._dataset = {"ID": "somebody"}
            w.signer._start = w.signer.reading("B")
            w.signer.words[signed.Wm3m4.STATE] = 1
        w.charge(ms=MINUTE)
        w.leave()
        assert w.finished()
        record, public = w.signed("end")
        assert verify.verdict(record, public)[0] == "valid"
        assert w.records("stop")[0]["session_id"].encode() in record and not w.failures()


def test_zeros_that_der_forbids_go_and_the_numbers_stay():
    # RsIskraMeter/src/utils.rs, tests of `to_signature`: (as the meter writes it, as it must be)
    tail = "02206a9b5ad6da8a3234e5df67fbddd2dd98b454c74625f9340a2e82fc81c4b41d49"
    for given, expected in (
        ("30440220015d226c5f20ebebfd9f0d1da2aa696dd4f77f3708eecde72b4a346ae03b8ce4" + tail, None),
        (
            "30440220005d226c5f20ebebfd9f0d1da2aa696dd4f77f3708eecde72b4a346ae03b8ce4" + tail,
            "3043021f5d226c5f20ebebfd9f0d1da2aa696dd4f77f3708eecde72b4a346ae03b8ce4" + tail,
        ),
        (
            "304402200000226c5f20ebebfd9f0d1da2aa696dd4f77f3708eecde72b4a346ae03b8ce4" + tail,
            "3042021e226c5f20ebebfd9f0d1da2aa696dd4f77f3708eecde72b4a346ae03b8ce4" + tail,
        ),
        (
            "304402200080226c5f20ebebfd9f0d1da2aa696dd4f77f3708eecde72b4a346ae03b8ce4" + tail,
            None,
        ),
        ("310402020001", None),
        ("3003020100ff", None),
    ):
        assert der(bytes.fromhex(given)).hex() == (expected or given)
    private = verify.ec.generate_private_key(verify.ec.SECP256R1())
    for _ in range(40):
        raw = private.sign(b"x", verify.ec.ECDSA(verify.SHA256()))
        assert der(signed.padded(raw)) == raw
    w = world("iskra_wm3m4")
    w.signer.padded = True
    w.charge(ms=MINUTE)
    w.leave()
    assert w.finished()
    assert verify.verdict(*w.signed("end"))[0] == "valid"
