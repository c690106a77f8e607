"""`native.py` in bytecode, where there is no machine code: CPython, chips without emitter."""


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
