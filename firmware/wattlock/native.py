"""The inner loops of a poll as machine code, which the board makes of this file when it starts.

Viper code: a subset of Python whose integers are machine words and whose ptr8 and ptr32 are plain
pointers, so an index is not checked and a product does not grow. Every size used here is known
before (`layout.py`, the predicted length of a reply), and what could leave 30 bits is left to
`formats.py`. It takes a fifth (values) to a tenth (CRC) of the instructions of bytecode, and
allocates nothing.

This file goes to the board as it is, for a compiled one fits one kind of chip only. Where it does
not load (CPython; a chip without code emitter) `formats.py` does the same work.
"""
# pyright: reportUndefinedVariable=false, reportIndexIssue=false
# ruff: noqa: F821

import micropython


@micropython.viper
def crc16(frame: ptr8, size: int) -> int:
    # x^16 + x^15 + x^2 + 1 is (x + 1)(x^15 + x + 1): a byte acts by two shifts and its parity
    crc = 0xFFFF
    i = 0
    while i < size:
        x = (crc ^ frame[i]) & 0xFF
        crc = crc >> 8 ^ x << 6 ^ x << 7
        if 0x6996 >> ((x ^ x >> 4) & 15) & 1:
            crc ^= 0xC001
        i += 1
    return crc


@micropython.viper
def is_answer(reply, size: int, request: ptr8) -> int:
    data = ptr8(reply)
    count = 2 * request[5]
    if size != count + 5 or data[2] != count:
        return 0
    if data[0] != request[0] or data[1] != request[1]:
        return 0
    return 0 if int(crc16(reply, size)) else 1


@micropython.viper
def decode(data: ptr8, at: int, rows: ptr32, i: int, size: int, order: int, out) -> int:
    step = -2 if order & 2 else 2
    swap = order & 1
    while i < size:
        kind = rows[i + 4]
        numerator = rows[i + 5]
        denominator = rows[i + 6]
        if kind > 4 or rows[i + 7] >= 0:
            return i
        p = at + 2 * rows[i + 3]
        high = data[p + swap] << 8 | data[p + 1 - swap]
        low = 0
        if kind > 1:
            p += step
            low = data[p + swap] << 8 | data[p + 1 - swap]
        marker = rows[i + 8]
        none = marker and high == rows[i + 9] and (marker == 1 or low == rows[i + 10])
        value = 0
        if kind == 4:
            right = 150 - (high >> 7 & 0xFF)  # value = mantissa / 2^right
            negative = high >> 15
            if right == -105:
                none = True  # infinity or NaN
            elif right <= 0 or denominator != 1 or numerator > 8191:
                return i
            elif right <= 38:  # else less than a half; the product has at most 37 bits
                low *= numerator
                high = (high & 0x7F | 0x80) * numerator + (low >> 16)
                low &= 0xFFFF
                if right > 16:
                    high += (1 << (right - 17)) + ((low - negative) >> 16)
                    value = high >> (right - 16)
                elif high >> (13 + right):
                    return i
                else:
                    low += (1 << (right - 1)) - negative
                    high += low >> 16
                    value = high << (16 - right) | (low & 0xFFFF) >> right
                if negative:
                    value = 0 - value
        else:
            if kind & 1 and high & 0x8000:
                high -= 0x10000
            value = high
            if kind > 1:
                if high >= 0x4000 or high < -0x4000:
                    return i
                value = high << 16 | low
            limit = 0x3FFFFFFF // numerator
            if value > limit or value < 0 - limit:
                return i
            value *= numerator
            if denominator != 1:
                value = (value + (denominator >> 1)) // denominator
        if none:
            out[rows[i + 2]] = None
        else:
            out[rows[i + 2]] = value
        i += 11
    return i
