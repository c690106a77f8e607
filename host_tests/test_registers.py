"""Registers -> integers: against exact rational arithmetic, over random bit patterns."""

import itertools
import json
import math
import random
import struct
import subprocess
from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from wattlock import layout, registers

from tools import paths

WORDS = dict(zip(layout.KINDS, layout._WORDS, strict=False))  # texts have no fixed number
FORMAT = {"u16": ">H", "i16": ">h", "u32": ">I", "i32": ">i", "u64": ">Q", "i64": ">q",
          "f32": ">f", "f64": ">d", "acc32": ">I"}  # fmt: skip
ORDERS = ("ABCD", "CDAB", "BADC", "DCBA")


def half_up(x: Fraction) -> int:
    return math.floor(x + Fraction(1, 2))


def on_the_wire(raw: bytes, order: str) -> bytes:
    words = [raw[i : i + 2] for i in range(0, len(raw), 2)]
    if order in ("CDAB", "DCBA"):
        words.reverse()
    if order in ("BADC", "DCBA"):
        words = [w[::-1] for w in words]
    return b"".join(words)


def exact(kind: str, raw: bytes) -> Fraction | None:
    """What the bits mean, by struct and fractions alone."""
    if kind in FORMAT:
        value = struct.unpack(FORMAT[kind], raw)[0]
        if isinstance(value, float) and not math.isfinite(value):
            return None
        if kind == "acc32" and value == 0:
            return None
        return Fraction(value)
    if kind.startswith("bcd"):
        return Fraction(int(raw.hex())) if raw.hex().isdigit() else None
    exponent = int.from_bytes(raw[:1], "big", signed=True)
    mantissa = int.from_bytes(raw[1:], "big", signed=kind == "t6")
    return mantissa * Fraction(10) ** exponent


def decoded(kind, raw, order, numerator=1, denominator=1, exponent=None):
    row = [7, kind, numerator, denominator]
    data = on_the_wire(raw, order)
    if exponent is not None:
        row.append(7 + WORDS[kind])
        data += on_the_wire(exponent.to_bytes(2, "big", signed=True), order)
    meter = registers.Meter(
        {"meter": "x", "order": order, "registers": {"energy_import_wh": row}}
    )
    meter.begin(False)
    meter.accept(bytes(3) + data, 3)
    meter.complete(0)
    return meter.energy_wh


def test_every_type_has_an_oracle():
    assert set(WORDS) == set(FORMAT) | {"bcd16", "bcd32", "bcd64", "t5", "t6"}


@pytest.mark.parametrize("kind", sorted(WORDS))
@given(
    data=st.data(),
    order=st.sampled_from(ORDERS),
    numerator=st.sampled_from((1, 1, 10, 100, 1000, 1000, 100000, 7)),
    denominator=st.sampled_from((1, 1, 1, 10, 100, 1000, 3)),
)
def test_random_bits_decode_exactly(kind, data, order, numerator, denominator):
    raw = data.draw(st.binary(min_size=2 * WORDS[kind], max_size=2 * WORDS[kind]))
    value = exact(kind, raw)
    expected = None if value is None else half_up(value * numerator / denominator)
    assert decoded(kind, raw, order, numerator, denominator) == expected


@pytest.mark.parametrize("kind", ("u16", "i16", "u32", "i32", "u64", "i64", "bcd32"))
@given(data=st.data(), exponent=st.integers(-12, 12), order=st.sampled_from(ORDERS))
def test_a_scale_factor_is_a_power_of_ten_or_none(kind, data, exponent, order):
    raw = data.draw(st.binary(min_size=2 * WORDS[kind], max_size=2 * WORDS[kind]))
    value = exact(kind, raw)
    valid = value is not None and -10 <= exponent <= 10
    expected = half_up(value * Fraction(10) ** exponent * 1000) if valid else None
    assert decoded(kind, raw, order, 1000, 1, exponent) == expected


@given(
    sign=st.sampled_from((1, -1)),
    halves=st.integers(0, 2**24 - 1),
    shift=st.integers(-40, 4),
    numerator=st.sampled_from((1, 10, 1000, 8191, 8192)),
)
@example(1, 1, -1, 1)
@example(-1, 1, -1, 1)
@example(-1, 3, -1, 1)
@example(1, 2**24 - 1, -1, 1)
@example(1, 5, -4, 1000)
def test_f32_near_and_at_halves(sign, halves, shift, numerator):
    value = sign * halves * Fraction(2) ** shift
    raw = struct.pack(">f", float(value))
    assert Fraction(struct.unpack(">f", raw)[0]) == value
    assert decoded("f32", raw, "ABCD", numerator) == half_up(value * numerator)


@given(st.floats(-3e9, 3e9, allow_nan=False))
@example(0.5)
@example(0.49999999999999994)
@example(-0.5)
@example(1048575.5)
@example(1048576.5)
@example(536870911.5)
@example(536870912.5)
@example(5e-324)
def test_f64_of_ordinary_size(value):
    assert decoded("f64", struct.pack(">d", value), "ABCD") == half_up(Fraction(value))


@pytest.mark.parametrize("bits", ("7F800000", "FF800000", "7FC00000", "FFFFFFFF", "7F800001"))
def test_f32_that_is_no_number_is_none(bits):
    assert decoded("f32", bytes.fromhex(bits), "ABCD", 1000) is None


@pytest.mark.parametrize("bits", ("7FF0000000000000", "FFF0000000000000", "7FF8000000000001"))
def test_f64_that_is_no_number_is_none(bits):
    assert decoded("f64", bytes.fromhex(bits), "CDAB") is None


def test_denormals_and_dust_are_zero_wh():
    for bits in ("00000001", "807FFFFF", "0D4B8B1C", "80000000"):  # 2.5e-29 was seen in the field
        value = Fraction(struct.unpack(">f", bytes.fromhex(bits))[0])
        assert decoded("f32", bytes.fromhex(bits), "ABCD", 1000) == 0 == half_up(value * 1000)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    ("kind", "bits", "marker", "expected"),
    [  # ABB A43/A44 manual: all ones, or the largest signed; Carlo Gavazzi: 0x7FFF on top is "EEE"
        ("u32", "FFFFFFFF", "FFFFFFFF", None),
        ("u32", "FFFFFFFE", "FFFFFFFF", 0xFFFFFFFE),
        ("i32", "7FFFFFFF", "7FFFFFFF", None),
        ("i32", "7FFFFFFE", "7FFFFFFF", 0x7FFFFFFE),
        ("i32", "7FFF0001", "7FFF", None),
        ("i16", "8000", "8000", None),
        ("u64", "FFFFFFFFFFFFFFFF", "FFFFFFFFFFFFFFFF", None),
        ("u64", "00000000FFFFFFFF", "FFFFFFFFFFFFFFFF", 0xFFFFFFFF),
        ("i64", "7FFFFFFFFFFFFFFF", "7FFFFFFFFFFFFFFF", None),
    ],
)
def test_a_meters_own_markers_are_none(order, kind, bits, marker, expected):
    meter = registers.Meter(
        {"meter": "x", "order": order, "na": {kind: marker},
         "registers": {"energy_import_wh": [0, kind]}}
    )  # fmt: skip
    meter.begin(False)
    meter.accept(on_the_wire(bytes.fromhex(bits), order), 0)
    meter.complete(0)
    assert meter.energy_wh == expected


@pytest.mark.parametrize(
    ("kind", "bits", "expected"),
    [
        ("ascii:4", "3132334142202000", "123AB"),
        ("utf16:4", "0053004F0043004F", "SOCO"),  # Socomec identity, maker's table
        ("hex:2", "15060001", "15060001"),  # Inepro PRO380 manual, example 1
        ("u32", "00BC614E", "12345678"),
        ("ascii:2", "00000000", ""),
    ],
)
def test_serial_numbers(kind, bits, expected):
    meter = registers.Meter(
        {"meter": "x", "registers": {"serial": [9, kind], "energy_import_wh": [0, "u16"]}}
    )
    meter.begin(True)
    meter.accept(bytes.fromhex(bits), 0)
    meter.accept(b"\0\1", 0)
    assert meter.serial is None, "known only with a complete reading"
    meter.complete(5)
    assert (meter.serial, meter.energy_wh, meter.at, meter.readings) == (expected, 1, 5, 1)


def blocks(description, names=registers.ESSENTIAL):
    meter = registers.Meter(description, names)
    return [(b.function, b.address, b.count) for b in meter._blocks if b]


def rows_of(block):
    return [list(block.rows[i : i + layout.ROW]) for i in range(0, block.size, layout.ROW)]


@given(
    st.lists(st.tuples(st.integers(0, 300), st.sampled_from(("u16", "f32", "u64"))), min_size=1),
    st.integers(4, 125),
    st.integers(0, 125),
)
def test_a_plan_covers_all_within_the_limits(rows, limit, gap):
    made = [layout._row(i, list(row), 0, {}) for i, row in enumerate(rows)]
    plan = layout.blocks_of(3, made, limit, gap)
    assert sorted(f for b in plan for f in rows_of(b)) == sorted(made)
    for block in plan:
        used = set()
        for f in rows_of(block):
            assert block.address <= f[0] and f[1] <= block.address + block.count
            used |= set(range(f[0], f[1]))
        assert block.count <= limit
        ordered = sorted(used)
        assert all(b - a - 1 <= gap for a, b in itertools.pairwise(ordered))
    firsts = [b.address for b in plan]
    assert firsts == sorted(firsts)


@given(
    st.lists(
        st.tuples(st.integers(0, 60), st.sampled_from(("u16", "f32", "u64"))),
        min_size=1, max_size=9, unique_by=lambda row: row[0],
    ),
    st.integers(4, 40),
    st.integers(0, 40),
)  # fmt: skip
def test_no_plan_has_fewer_requests(rows, limit, gap):
    """Against all ways to part the rows in their order."""
    made = sorted(layout._row(i, list(row), 0, {}) for i, row in enumerate(rows))

    def readable(part):
        end = part[0][1]
        for row in part[1:]:
            if row[0] - end > gap:
                return False
            end = max(end, row[1])
        return end - part[0][0] <= limit

    fewest = [0]
    for end in range(1, len(made) + 1):
        starts = [start for start in range(end) if readable(made[start:end])]
        fewest.append(1 + min(fewest[start] for start in starts))
    assert len(layout.blocks_of(3, made, limit, gap)) == fewest[-1]


def test_sdm630_is_one_request_within_its_limit_of_80():
    sdm = {"function": 4, "max_registers": 80, "meter": "x", "registers": {
        "energy_import_wh": [72, "f32", 1000], "power_w": [52, "f32"],
        "current_l1_ma": [6, "f32", 1000], "serial": [[3, 64512], "u32"]}}  # fmt: skip
    assert blocks(sdm) == [(3, 64512, 2), (4, 6, 68)]
    assert blocks(sdm | {"max_registers": 11})[1:] == [(4, 6, 2), (4, 52, 2), (4, 72, 2)]


def test_a_refused_block_is_split_and_a_refused_register_left_out():
    meter = registers.Meter(
        {"meter": "x", "registers": {
            "energy_import_wh": [10, "u16"], "energy_export_wh": [11, "u16"],
            "power_w": [40, "u16"]}}
    )  # fmt: skip
    meter.begin(False)
    assert meter.block.count == 31
    assert meter.reject(0x82), "illegal address"
    assert (meter.block.address, meter.block.count) == (10, 2)
    assert meter.reject(0x82)
    assert (meter.block.address, meter.block.count) == (10, 1)
    meter.accept(b"\0\7", 0)
    assert (meter.block.address, meter.block.count) == (11, 1)
    assert meter.reject(0x82)
    meter.accept(b"\0\x09", 0)
    assert meter.block is None
    meter.complete(1)
    assert (meter.energy_wh, meter.export_wh, meter.power_w) == (7, None, 9)
    meter.begin(False)
    assert not meter.reject(0x84), "a failure of the device is not a refusal"
    meter.accept(b"\0\7", 0)
    assert meter.block.address == 40


def test_the_energy_register_is_never_given_up():
    meter = registers.Meter({"meter": "x", "registers": {"energy_import_wh": [10, "u16"]}})
    meter.begin(False)
    assert not meter.reject(0x82)
    assert meter.block.address == 10


def test_no_serial_number_is_empty_and_a_known_one_does_not_vanish():
    rows = {"serial": [9, "u16"], "energy_import_wh": [0, "u16"]}
    description = {"meter": "x", "registers": rows}
    meter = registers.Meter(description)
    meter.begin(True)
    assert meter.reject(0x82)
    meter.accept(b"\0\1", 0)
    meter.complete(0)
    assert meter.serial == ""
    meter = registers.Meter(description)
    for _ in range(2):
        meter.begin(True)
        assert meter.block.address == 9
        if meter.serial is None:
            meter.accept(b"\x12\x34", 0)
            meter.accept(b"\0\1", 0)
            meter.complete(0)
    assert not meter.reject(0x82)
    assert meter.serial == str(0x1234)


def test_power_and_current_from_what_there_is():
    meter = registers.Meter(
        {"meter": "x", "registers": {
            "energy_import_wh": [0, "u16"], "power_import_w": [1, "u16"],
            "power_export_w": [2, "u16"],
            "current_l1_ma": [3, "i16"], "current_l2_ma": [4, "i16"]}}
    )  # fmt: skip
    meter.begin(False)
    meter.accept(struct.pack(">HHHhh", 1, 5, 25, 7, -900), 0)
    meter.complete(0)
    assert (meter.power_w, meter.current_ma) == (-20, 900)
    assert meter.value("power_import_w") == 5
    assert meter.value("frequency_mhz") is None


def test_an_unknown_type_names_itself():
    with pytest.raises(ValueError, match=r"type f16 is none of u16 i16"):
        registers.Meter({"meter": "x", "registers": {"power_w": [0, "f16"]}})


IN_THE_VM = """
import json, sys
sys.path.insert(0, sys.argv[1])
from wattlock import layout, registers
from wattlock.native import decode
assert registers.decode is decode
wrong = 0
with open(sys.argv[2]) as cases:
    for line in cases:
        kind, order, numerator, denominator, data, expected = json.loads(line)
        row = [0, kind, numerator, denominator]
        meter = registers.Meter({"meter": "x", "order": order,
                                 "registers": {"energy_import_wh": row}})
        meter.begin(False)
        meter.accept(bytes.fromhex(data), 0)
        meter.complete(0)
        if meter.energy_wh != expected:
            print(line, meter.energy_wh)
            wrong += 1
print("wrong", wrong)
"""


def test_the_vm_decodes_the_same(micropython, tmp_path):
    """The 32-bit VM's integers, small and big, against rational arithmetic done here."""
    draw = random.Random(630)
    cases = []
    for kind in sorted(WORDS):
        for _ in range(150):
            raw = draw.randbytes(2 * WORDS[kind])
            if kind == "f32":  # of the size of energies and powers
                raw = struct.pack(">f", draw.uniform(-1, 1) * 10 ** draw.randint(-4, 9))
            elif kind == "f64":
                raw = struct.pack(">d", draw.uniform(-1, 1) * 10 ** draw.randint(-4, 12))
            elif kind.startswith("bcd"):
                raw = bytes.fromhex("".join(draw.choices("0123456789", k=4 * WORDS[kind])))
            elif kind in ("t5", "t6"):
                raw = draw.choice((b"\xfc", b"\xfd", b"\x00", b"\x03")) + raw[1:]
            order = draw.choice(ORDERS)
            numerator = draw.choice((1, 10, 100, 1000, 8191, 8192))
            denominator = draw.choice((1, 1, 10, 1000))
            value = exact(kind, raw)
            expected = None if value is None else half_up(value * numerator / denominator)
            data = on_the_wire(raw, order).hex()
            cases.append([kind, order, numerator, denominator, data, expected])
    for _ in range(1500):  # near halves, and at the 30 bits where machine code takes care
        kind = draw.choice(("f32", "u32", "i32", "i16"))
        numerator = draw.choice((1, 10, 1000, 8191))
        sign = draw.choice((1, -1))
        if kind == "f32":
            raw = struct.pack(">f", sign * draw.getrandbits(24) * 2.0 ** draw.randint(-40, 7))
        else:
            size = 16 if kind == "i16" else 32
            near = (sign * (1 << 30) + draw.randint(-9, 9)) // numerator
            raw = (near & (1 << size) - 1).to_bytes(size // 8, "big")
        denominator = draw.choice((1, 1, 2, 10, 1000))
        value = exact(kind, raw)
        assert value is not None
        data = on_the_wire(raw, "CDAB").hex()
        expected = half_up(value * numerator / denominator)
        cases.append([kind, "CDAB", numerator, denominator, data, expected])
    path = tmp_path / "cases"
    path.write_text("".join(json.dumps(case) + "\n" for case in cases))
    done = subprocess.run(
        [micropython, "-c", IN_THE_VM, str(paths.FIRMWARE), str(path)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.stdout == "wrong 0\n", done.stdout + done.stderr
