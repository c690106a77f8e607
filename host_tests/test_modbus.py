"""Framing against published frames, and every way in which a reply can be wrong."""

import json
import random
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wattlock import modbus, signing

from tools import paths

TRANSCRIPTS = json.loads((Path(__file__).parent / "data" / "transcripts.json").read_text())


def test_crc_of_the_catalogues():
    # CRC RevEng catalogue, CRC-16/MODBUS: check 0x4B37 over "123456789"
    assert modbus.crc16(b"123456789", 9) == 0x4B37
    assert modbus.crc16(b"", 0) == 0xFFFF


def test_crc_of_the_serial_line_guide():
    # MODBUS over Serial Line 1.02, appendix B: 02 07 -> 41 12 on the wire
    assert modbus.crc16(bytes.fromhex("0207"), 2) == 0x1241


@pytest.mark.parametrize(
    "frame",
    sorted({t[k] for t in TRANSCRIPTS for k in ("request", "response") if t.get(k)}),
)
def test_every_frame_of_the_transcripts_ends_with_its_crc(frame):
    data = bytes.fromhex(frame)
    assert modbus.crc16(data, len(data)) == 0
    assert modbus.crc16(data, len(data) - 2) == data[-2] | data[-1] << 8


@given(st.binary(min_size=4, max_size=255), st.data())
def test_any_burst_of_up_to_16_bits_is_seen(data, draw):
    frame = bytearray(data)
    crc = modbus.crc16(frame, len(frame))
    frame += bytes((crc & 0xFF, crc >> 8))
    burst = draw.draw(st.integers(1, 0xFFFF))
    at = draw.draw(st.integers(0, 8 * len(frame) - 16))
    wrong = int.from_bytes(frame, "little") ^ burst << at
    assert modbus.crc16(wrong.to_bytes(len(frame), "little"), len(frame)) != 0


@pytest.mark.parametrize("t", TRANSCRIPTS, ids=lambda t: f"{t['meter']} {t['title']}")
def test_read_requests_are_built_as_published(t):
    request = bytes.fromhex(t["request"] or "")
    if request[1:2] not in (b"\x03", b"\x04"):
        assert t["title"].startswith("set ") or "snapshot" in t["title"] or "change" in t["title"]
        return
    address, count = int.from_bytes(request[2:4], "big"), int.from_bytes(request[4:6], "big")
    assert modbus.rtu_read(request[0], request[1], address, count) == request


def test_write_requests_are_built_as_published():
    # bsm-python doc/examples/snapshots.md: write 2 to the status of the current snapshot
    request = bytes.fromhex("2A109E4C0001020002BCA5")
    assert signing.write(40524, 2).rtu(0x2A, modbus) == request
    echo = bytes.fromhex("2A109E4C0001E9ED")
    assert modbus.rtu_check(echo, 8, request) == modbus.OK
    other = bytes.fromhex("2A109D440003E9AA")
    assert modbus.rtu_check(other, 8, request) == modbus.LENGTH


REQUEST = bytes.fromhex("010400000002 71CB")
REPLY = bytes.fromhex("0104044366333 41B38".replace(" ", ""))  # 230.2 V, Eastron's example


def framed(hexadecimal: str) -> bytes:
    data = bytes.fromhex(hexadecimal)
    return data + modbus.crc16(data, len(data)).to_bytes(2, "little")


@pytest.mark.parametrize(
    ("reply", "outcome"),
    [
        (REPLY, "ok"),
        (b"", "timeout"),
        (REPLY[:-1], "short"),
        (REPLY[:3], "short"),
        (REPLY + b"\x00", "long"),
        (b"\x00" + REPLY, "long"),
        (REPLY + REPLY, "long"),
        (REPLY[:-2] + b"\0\0", "crc"),
        (REPLY[:4] + b"\x00" + REPLY[5:], "crc"),
        (framed("020404 43663334"), "unit"),
        (framed("010304 43663334"), "function"),
        (framed("010402 4366"), "length"),
        (framed("010406 436633340000"), "length"),
        (framed("010403 43663334"), "length"),
        (framed("018402"), "exception 2"),
        (framed("018302"), "function"),
        (framed("028402"), "unit"),
        (bytes.fromhex("018402") + b"\0\0", "crc"),
    ],
)
def test_rtu_outcomes(reply, outcome):
    buffer = bytearray(260)
    buffer[: len(reply)] = reply
    assert modbus.name(modbus.rtu_check(buffer, len(reply), REQUEST)) == outcome


IN_THE_VM = """
import json, sys
sys.path.insert(0, sys.argv[1])
from wattlock import formats, modbus, native
assert modbus.crc16 is native.crc16
wrong = 0
with open(sys.argv[2]) as cases:
    for line in cases:
        frame, request = [bytes.fromhex(text) for text in json.loads(line)]
        for size in range(len(frame) + 1):
            wrong += native.crc16(frame, size) != formats.crc16(frame, size)
        for size in (len(frame) - 1, len(frame)):
            answer = native.is_answer(frame, size, request)
            wrong += bool(answer) != bool(formats.is_answer(frame, size, request))
            wrong += bool(answer) != (modbus.rtu_check(frame, size, request) == 0)
print("wrong", wrong)
"""


def test_machine_code_and_bytecode_agree(micropython, tmp_path):
    draw = random.Random(1)
    cases = []
    for _ in range(60):
        unit, function, count = draw.randint(1, 247), draw.choice((3, 4)), draw.randint(1, 20)
        request = modbus.rtu_read(unit, function, 0, count)
        good = framed((bytes((unit, function, 2 * count)) + draw.randbytes(2 * count)).hex())
        other = framed((bytes((unit ^ 1, function, 2 * count)) + draw.randbytes(2 * count)).hex())
        bad = bytearray(good)
        bad[draw.randrange(len(bad))] ^= 1 << draw.randrange(8)
        cases += [(reply.hex(), request.hex()) for reply in (good, other, bad)]
    path = tmp_path / "cases"
    path.write_text("".join(json.dumps(case) + "\n" for case in cases))
    done = subprocess.run(
        [micropython, "-c", IN_THE_VM, str(paths.FIRMWARE), str(path)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.stdout == "wrong 0\n", done.stdout + done.stderr


WITHOUT = """
from wattlock import modbus, registers
assert modbus.crc16(b"123456789", 9) == 0x4B37
meter = registers.Meter({"meter": "x", "registers": {"energy_import_wh": [0, "f32", 1000]}})
meter.begin(False)
meter.accept(b"\\x42\\xf6\\xe9\\x79", 0)
meter.complete(0)
print(meter.energy_wh)
"""


def test_a_chip_without_machine_code_does_the_same(micropython, tmp_path):
    shutil.copytree(paths.FIRMWARE / "wattlock", tmp_path / "wattlock")
    native = tmp_path / "wattlock" / "native.py"
    native.write_text(native.read_text().replace("micropython.viper", "micropython.of_no_chip"))
    done = subprocess.run(
        [micropython, "-c", WITHOUT],
        env={"MICROPYPATH": str(tmp_path)},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.stdout == "123456\n", done.stdout + done.stderr  # 123.456 as an f32


TCP_REQUEST = bytearray.fromhex("0102 0000 0006 01 04 0000 0002")
TCP_REPLY = bytes.fromhex("0102 0000 0007 01 04 04 43663334")


@pytest.mark.parametrize(
    ("reply", "outcome"),
    [
        (TCP_REPLY, "ok"),
        (b"", "timeout"),
        (TCP_REPLY[:-1], "short"),
        (TCP_REPLY[:5], "short"),
        (TCP_REPLY + b"\0", "long"),
        (b"\x01\x01" + TCP_REPLY[2:], "transaction"),
        (TCP_REPLY[:2] + b"\0\1" + TCP_REPLY[4:], "protocol"),
        (TCP_REPLY[:6] + b"\x02" + TCP_REPLY[7:], "unit"),
        (TCP_REPLY[:7] + b"\x03" + TCP_REPLY[8:], "function"),
        (bytes.fromhex("0102 0000 0005 01 04 02 4366"), "length"),
        (bytes.fromhex("0102 0000 0003 01 84 02"), "exception 2"),
        (bytes.fromhex("0102 0000 0003 01 83 02"), "function"),
    ],
)
def test_tcp_outcomes(reply, outcome):
    assert modbus.name(modbus.tcp_check(reply, len(reply), TCP_REQUEST)) == outcome


def test_tcp_requests():
    frame = modbus.tcp_read(1, 4, 0, 2)
    modbus.tcp_stamp(frame, 0x0102)
    assert frame == TCP_REQUEST
    modbus.tcp_stamp(frame, 0x1FFFF)
    assert frame[:2] == b"\xff\xff"
    assert modbus.tcp_reply_size(frame) == len(TCP_REPLY) == modbus.tcp_frame_size(TCP_REPLY)


@given(st.integers(1, 247), st.sampled_from((3, 4)), st.integers(0, 65535), st.integers(1, 125))
def test_a_sound_answer_is_ok_and_its_length_predicted(unit, function, address, count):
    request = modbus.rtu_read(unit, function, address, count)
    reply = framed(bytes((unit, function, 2 * count)).hex() + "5a" * 2 * count)
    assert modbus.rtu_reply_size(request) == len(reply)
    assert modbus.rtu_check(reply, len(reply), request) == modbus.OK


@given(st.binary(max_size=255))
def test_noise_is_never_ok_nor_a_crash(noise):
    outcome = modbus.rtu_check(noise, len(noise), REQUEST)
    if outcome == modbus.OK or outcome & modbus.EXCEPTION:
        assert noise[0] == 1 and modbus.crc16(noise, len(noise)) == 0
    assert modbus.tcp_check(noise, len(noise), TCP_REQUEST) != modbus.OK or noise[:2] == b"\1\2"


def test_outcomes_are_counted_apart():
    counts = [0] * modbus.OUTCOMES
    for outcome in (modbus.CRC, modbus.EXCEPTION | 2, modbus.EXCEPTION | 6, modbus.LATE):
        modbus.tally(counts, outcome)
    assert counts[modbus.CRC] == counts[modbus.LATE] == 1
    assert counts[-1] == 2
    assert len({modbus.name(i) for i in range(modbus.OUTCOMES)}) == modbus.OUTCOMES
