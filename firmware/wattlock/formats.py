"""Rows of a block -> integers, exactly, for every format and size: what `native.py` leaves.

Loaded when a row needs it: 64 bits, f64, BCD, Iskra's t5 and t6, SunSpec's accumulators and scale
factors, texts, and values of 2^30 or more; all rows, and the checks of a frame, where there is no
machine code (CPython; a chip without code emitter). A value is rounded half up, once.

Limits: bits beyond 64; texts other than the serial number. Values below 2^30 are decoded without
an allocation, f32 apart: its product takes more than 30 bits.
"""

# as numbered in layout.KINDS
_I16 = 1
_I32 = 3
_F32 = 4
_ACC32 = 5
_BCD16 = 6
_BCD32 = 7
_T5 = 8
_T6 = 9
_I64 = 11
_F64 = 12
_BCD64 = 13
_TEXT = 14  # and above
_UTF16 = 15
_HEX = 16

_ROW = 11  # as in layout.ROW


def ratio(value, right, denominator):
    """value / 2^right / denominator, rounded half up, in integers of any size."""
    if right <= 0:
        value <<= -right
    else:
        denominator <<= right
    return (value + (denominator >> 1)) // denominator


def scale(value, exponent, numerator, denominator):
    """value * 10^exponent * numerator / denominator, rounded half up."""
    while exponent < 0:
        exponent += 1
        if numerator % 10:
            denominator *= 10
        else:
            numerator //= 10
    while exponent:
        exponent -= 1
        if denominator % 10:
            numerator *= 10
        else:
            denominator //= 10
    value *= numerator
    if denominator == 1:
        return value
    return (value + (denominator >> 1)) // denominator


def scale_f32(high, low, numerator, denominator):
    """An f32, given as its two words, times numerator / denominator; None for infinity and NaN."""
    exponent = high >> 7 & 0xFF
    if exponent == 0xFF:
        return None
    mantissa = (high & 0x7F) << 16 | low
    if exponent:
        mantissa |= 1 << 23
    else:
        exponent = 1
    mantissa *= numerator
    return ratio(-mantissa if high & 0x8000 else mantissa, 150 - exponent, denominator)


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


def decode(data, at, rows, i, size, order, out):
    """`rows[i:size]` of the registers whose number 0 would be at `data[at]`, into `out`. Returns
    the index of the first row that is not done: none here."""
    while i < size:
        out[rows[i + 2]] = _value(data, at, rows, i, order)
        i += _ROW
    return i


def _word(data, at, swap):
    return data[at + swap] << 8 | data[at + 1 - swap]


def _value(data, at, rows, i, order):
    swap = order & 1
    exponent = 0
    if rows[i + 7] >= 0:
        exponent = _word(data, at + 2 * rows[i + 7], swap)
        if exponent & 0x8000:
            exponent -= 0x10000
        if not -10 <= exponent <= 10:  # SunSpec's range; 0x8000 is "none"
            return None
    at += 2 * rows[i + 3]
    kind = rows[i + 4]
    numerator = rows[i + 5]
    denominator = rows[i + 6]
    if kind >= _TEXT:
        return text(data, at, numerator, kind)
    step = -2 if order & 2 else 2
    w = _word(data, at, swap)
    if rows[i + 8] and w == rows[i + 9]:
        for k in range(1, rows[i + 8]):
            if _word(data, at + k * step, swap) != rows[i + 10]:
                break
        else:
            return None
    if kind == _BCD16:
        w = _bcd(0, w)
    elif kind <= _I16:
        if kind and w & 0x8000:
            w -= 0x10000
    else:
        at += step
        low = _word(data, at, swap)
        if kind == _F32:
            return scale_f32(w, low, numerator, denominator)
        if kind == _BCD32:
            w = _bcd(_bcd(0, w), low)
        elif kind <= _ACC32:
            if kind == _I32 and w & 0x8000:
                w -= 0x10000
            w = w << 16 | low
            if kind == _ACC32 and not w:
                return None  # an accumulator that was never started
        elif kind <= _T6:
            exponent = w >> 8
            if exponent & 0x80:
                exponent -= 0x100
            w &= 0xFF
            if kind == _T6 and w & 0x80:
                w -= 0x100
            w = w << 16 | low
        else:
            at += step
            w1 = _word(data, at, swap)
            at += step
            w0 = _word(data, at, swap)
            if kind == _F64:
                return scale_f64(w, low, w1, w0, numerator, denominator)
            if kind == _BCD64:
                w = _bcd(_bcd(_bcd(_bcd(0, w), low), w1), w0)
            else:
                if kind == _I64 and w & 0x8000:
                    w -= 0x10000
                if w or low:
                    w1 |= (w << 16 | low) << 16
                w = w1 << 16 | w0
    return None if w is None else scale(w, exponent, numerator, denominator)


def text(data, at, count, kind):
    """A serial number of `count` registers from `at`; "" where it is blank."""
    if kind == _HEX:
        return "".join("%02X" % data[i] for i in range(at, at + 2 * count))
    step = 2 if kind == _UTF16 else 1
    return "".join(
        chr(data[i]) for i in range(at + step - 1, at + 2 * count, step) if 32 <= data[i] < 127
    ).strip()


# -- frames --------------------------------------------------------------------------------------


def crc16(frame, size):
    crc = 0xFFFF
    for i in range(size):
        x = (crc ^ frame[i]) & 0xFF
        crc = crc >> 8 ^ x << 6 ^ x << 7
        if 0x6996 >> ((x ^ x >> 4) & 15) & 1:
            crc ^= 0xC001
    return crc


def is_answer(reply, size, request):
    count = 2 * request[5]
    return (
        size == count + 5
        and reply[2] == count
        and reply[0] == request[0]
        and reply[1] == request[1]
        and not crc16(reply, size)
    )
