"""Values -> register bytes and back, by struct and Fraction: the simulated meter's own arithmetic.

Deliberately not the firmware's decoder: a mistake there must not cancel out here.
"""

import math
import struct
from fractions import Fraction

_STRUCT = {
    "u16": ">H", "i16": ">h", "u32": ">I", "i32": ">i", "acc32": ">I", "u64": ">Q", "i64": ">q",
    "f32": ">f", "f64": ">d",
}  # fmt: skip
_SIZE = {"bcd16": 2, "bcd32": 4, "bcd64": 8, "t5": 4, "t6": 4}


def size(kind: str) -> int:
    """Bytes of a value of this type."""
    return struct.calcsize(_STRUCT[kind]) if kind in _STRUCT else _SIZE[kind]


def pack(kind: str, raw: Fraction) -> bytes:
    """The bytes, highest first, that come nearest to `raw` from below (floats: nearest).

    OverflowError where the type cannot hold it.
    """
    if kind in ("f32", "f64"):
        return struct.pack(_STRUCT[kind], float(raw))
    if kind in ("t5", "t6"):
        limit = 1 << (23 if kind == "t6" else 24)
        exponent = -4
        while not -limit <= raw / Fraction(10) ** exponent < limit:
            exponent += 1
        mantissa = math.floor(raw / Fraction(10) ** exponent)
        return struct.pack(">b", exponent) + mantissa.to_bytes(3, "big", signed=kind == "t6")
    whole = math.floor(raw)
    if kind in _STRUCT:
        try:
            return struct.pack(_STRUCT[kind], whole)
        except struct.error as e:
            raise OverflowError(f"{whole} does not fit {kind}") from e
    digits = str(whole).zfill(2 * _SIZE[kind])
    if whole < 0 or len(digits) > 2 * _SIZE[kind]:
        raise OverflowError(f"{whole} does not fit {kind}")
    return bytes.fromhex(digits)


def unpack(kind: str, data: bytes) -> Fraction:
    """What those bytes say."""
    if kind in _STRUCT:
        return Fraction(struct.unpack(_STRUCT[kind], data)[0])
    if kind in ("t5", "t6"):
        mantissa = int.from_bytes(data[1:], "big", signed=kind == "t6")
        return mantissa * Fraction(10) ** struct.unpack(">b", data[:1])[0]
    return Fraction(int(data.hex()))


def reorder(data: bytes, order: str) -> list[int]:
    """Registers in the order of the wire. ABCD, CDAB, BADC, DCBA: the bytes of a 32-bit value."""
    words = [int.from_bytes(data[i : i + 2], "big") for i in range(0, len(data), 2)]
    if order in ("CDAB", "DCBA"):
        words.reverse()
    if order in ("BADC", "DCBA"):
        words = [(w & 0xFF) << 8 | w >> 8 for w in words]
    return words


def text(kind: str, registers: int, value: str) -> list[int]:
    """Registers that hold a serial number as ascii, utf16 (a character each) or hex digits."""
    if kind == "utf16":
        return [ord(c) for c in value.ljust(registers, "\0")[:registers]]
    if kind == "hex":
        data = bytes.fromhex(value.rjust(4 * registers, "0")[-4 * registers :])
    else:
        data = value.encode("ascii").ljust(2 * registers, b"\0")[: 2 * registers]
    return [int.from_bytes(data[i : i + 2], "big") for i in range(0, len(data), 2)]


def half_up(x: Fraction) -> int:
    return math.floor(x + Fraction(1, 2))
