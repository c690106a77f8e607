"""Frames and registers in the VM: published frames, IEEE 754 by hand, and no float in between.

`host_tests/test_registers.py` compares random bit patterns with exact rationals.
"""

from binascii import unhexlify

from wattlock import modbus
from wattlock.registers import Meter


def test_published_frames():
    # MODBUS over Serial Line 1.02, 6.2.2: CRC of 02 07 is 41 12 (low byte first)
    assert modbus.crc16(unhexlify("02074112"), 4) == 0
    # Eastron SDM630 protocol: read 30001/2 of slave 1, and its answer of 230.2 V
    assert bytes(modbus.rtu_read(1, 4, 0, 2)) == unhexlify("01040000000271cb")
    reply = unhexlify("01040443663334") + b"\x1b\x38"
    assert modbus.rtu_check(reply, 9, modbus.rtu_read(1, 4, 0, 2)) == modbus.OK


def test_every_wrong_reply_has_its_name():
    request = modbus.rtu_read(1, 4, 0, 2)
    good = bytearray(unhexlify("010404436633341b38"))

    def verdict(reply):
        return modbus.rtu_check(bytes(reply), len(reply), request)

    def framed(text):
        frame = bytearray(unhexlify(text) + b"\0\0")
        crc = modbus.crc16(frame, len(frame) - 2)
        frame[-2] = crc & 255
        frame[-1] = crc >> 8
        return frame

    assert verdict(good) == modbus.OK
    assert verdict(b"") == modbus.TIMEOUT
    for size in range(1, 9):
        assert verdict(good[:size]) in (modbus.SHORT, modbus.CRC)
    for i in range(9):
        for bit in range(8):
            bad = bytearray(good)
            bad[i] ^= 1 << bit
            assert verdict(bad) == modbus.CRC
    assert verdict(good + b"\0") == modbus.LONG
    assert verdict(framed("02040443663334")) == modbus.UNIT
    assert verdict(framed("01030443663334")) == modbus.FUNCTION
    assert verdict(framed("0104024366")) == modbus.LENGTH  # a late reply to a shorter request
    assert verdict(framed("018402")) == modbus.EXCEPTION | 2


def read(kind, words, numerator=1, denominator=1, order="ABCD"):
    data = unhexlify(words)
    meter = Meter(
        {
            "meter": "x",
            "order": order,
            "registers": {"energy_import_wh": [0, kind, numerator, denominator]},
        }
    )
    meter.begin(False)
    block = meter.block
    assert block.address == 0 and block.count == len(data) // 2
    meter.accept(bytes(3) + data, 3)
    assert meter.block is None
    meter.complete(7)
    assert meter.readings == 1 and meter.at == 7
    return meter.energy_wh


def test_values():
    for kind, words, numerator, denominator, want in (
        ("u16", "ffff", 1, 1, 65535),
        ("i16", "ffff", 1, 1, -1),
        ("u32", "80000000", 1, 1, 1 << 31),
        ("u32", "ffffffff", 10, 1, 42949672950),
        ("i32", "ffffffff", 1, 1, -1),
        ("u64", "ffffffffffffffff", 1, 1, (1 << 64) - 1),
        ("i64", "8000000000000000", 1, 1, -(1 << 63)),
        ("u32", "00000005", 1, 10, 1),  # 0.5 up
        ("u32", "00000004", 1, 10, 0),
        ("f32", "42f6e979", 1000, 1, 123456),  # 123.456 kWh
        ("f32", "3f000000", 1, 1, 1),  # 0.5 rounds up
        ("f32", "3effffff", 1, 1, 0),  # the float below it does not
        ("f32", "46800000", 1000, 1, 16384000),
        ("f32", "c2f6e979", 1000, 1, -123456),
        ("f32", "00000000", 1000, 1, 0),
        ("f32", "00000001", 1000, 1, 0),  # the smallest subnormal
        ("f32", "7f800000", 1, 1, None),  # infinity
        ("f32", "7fc00000", 1, 1, None),  # not a number
        ("f64", "405edd2f1a9fbe77", 1000, 1, 123456),
    ):
        assert read(kind, words, numerator, denominator) == want, (kind, words)


def test_word_orders():
    for order, words in (
        ("ABCD", "01020304"),
        ("CDAB", "03040102"),
        ("BADC", "02010403"),
        ("DCBA", "04030201"),
    ):
        assert read("u32", words, 1, 1, order) == 0x01020304
