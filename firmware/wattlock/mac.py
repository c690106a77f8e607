"""HMAC-SHA256 (RFC 2104) with its pads made once, and a comparison that takes constant time."""

import hashlib


class Mac:
    """HMAC-SHA256 under `key` (at most 64 bytes): `Mac(key)(part, part...)` gives 32 bytes."""

    def __init__(self, key):
        pad = bytearray(64)
        pad[: len(key)] = key
        for i in range(64):
            pad[i] ^= 0x36
        self._inner = bytes(pad)
        for i in range(64):
            pad[i] ^= 0x6A  # 0x36 ^ 0x5C
        self._outer = bytes(pad)

    def __call__(self, *parts):
        h = hashlib.sha256(self._inner)
        for part in parts:
            h.update(part)
        inner = h.digest()
        h = hashlib.sha256(self._outer)
        h.update(inner)
        return h.digest()


def purpose(key, what, station_id):
    """The Mac of one purpose ("up", "down" or "chain") under the station's key."""
    return Mac(Mac(key)(("wattlock/1/%s/%s" % (what, station_id)).encode()))


def equal(a, b):
    """Are these bytes the same? Takes as long for every answer."""
    diff = len(a) ^ len(b)
    for i in range(min(len(a), len(b))):
        diff |= a[i] ^ b[i]
    return diff == 0
