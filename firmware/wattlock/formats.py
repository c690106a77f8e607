"""The less common formats of registers: 64 bits, f64, BCD, Iskra's t5 and t6, SunSpec's
accumulators, and serial numbers as text. Loaded when the configured meter has one of them.

Limits: bits beyond 64, strings other than the serial number.
"""

from .registers import ratio, scale


def scale_f64(w3, w2, w1, w0, numerator, denominator):
    """An f64, given as its four words (highest first), as `scale_f32`."""
    exponent = w3 >> 4 & 0x7FF
    if exponent == 0x7FF:
        return None
    if numerator == 1 and denominator == 1 and not w3 & 0x8000 and exponent < 1023 + 29:
        if exponent < 1022:
            return 0
        top = (w3 & 0xF | 0x10) << 16 | w2  # 21 bits: the integer part has exponent - 1022 of them
        right = 1043 - exponent
        if right >= 0:
            return (top >> right) + ((top >> right - 1 if right else w1 >> 15) & 1)
        right += 16
        return (top << 16 - right | w1 >> right) + (w1 >> right - 1 & 1)
    mantissa = ((w3 & 0xF) << 16 | w2) << 32 | w1 << 16 | w0
    if exponent:
        mantissa |= 1 << 52
    else:
        exponent = 1
    mantissa *= numerator
    return ratio(-mantissa if w3 & 0x8000 else mantissa, 1075 - exponent, denominator)


def _bcd(value, word):
    """The digits of `value` followed by the four of `word`; None unless all are digits."""
    for shift in (12, 8, 4, 0):
        digit = word >> shift & 0xF
        if value is None or digit > 9:
            return None
        value = value * 10 + digit
    return value


def decode(data, at, step, swap, kind, numerator, denominator, exponent):
    """As `registers.decode`, for the formats that it leaves to this module. A text has its number
    of registers in `numerator`."""
    if kind == "ascii" or kind == "utf16" or kind == "hex":
        return text(data, at, numerator, kind)
    w = data[at + swap] << 8 | data[at + 1 - swap]
    if kind == "bcd16":
        w = _bcd(0, w)
        return None if w is None else scale(w, exponent, numerator, denominator)
    at += step
    low = data[at + swap] << 8 | data[at + 1 - swap]
    if kind == "t5" or kind == "t6":
        exponent = w >> 8
        if exponent & 0x80:
            exponent -= 0x100
        w &= 0xFF
        if kind == "t6" and w & 0x80:
            w -= 0x100
        return scale(w << 16 | low, exponent, numerator, denominator)
    if kind == "acc32":  # SunSpec: 0 is an accumulator that was never started
        w = w << 16 | low
        return scale(w, exponent, numerator, denominator) if w else None
    if kind == "bcd32":
        w = _bcd(_bcd(0, w), low)
        return None if w is None else scale(w, exponent, numerator, denominator)
    at += step
    w1 = data[at + swap] << 8 | data[at + 1 - swap]
    at += step
    w0 = data[at + swap] << 8 | data[at + 1 - swap]
    if kind == "bcd64":
        w = _bcd(_bcd(_bcd(_bcd(0, w), low), w1), w0)
        return None if w is None else scale(w, exponent, numerator, denominator)
    if kind == "f64":
        return scale_f64(w, low, w1, w0, numerator, denominator)
    if kind == "i64" and w & 0x8000:
        w -= 0x10000
    if w or low:
        w = (w << 16 | low) << 16 | w1
    else:
        w = w1
    return scale(w << 16 | w0, exponent, numerator, denominator)


def text(data, at, count, kind):
    """A serial number of `count` registers from `at`; "" where it is blank."""
    if kind == "hex":
        return "".join("%02X" % data[i] for i in range(at, at + 2 * count))
    step = 2 if kind == "utf16" else 1
    return "".join(
        chr(data[i]) for i in range(at + step - 1, at + 2 * count, step) if 32 <= data[i] < 127
    ).strip()
