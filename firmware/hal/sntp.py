"""What time a time server says it is (RFC 4330), for certificates only: see `tls.py`.

The answer must carry the time stamp that was sent, eight random bytes: so it is from somebody who
saw the question, which is all that is known of him.
"""

from .names import Ask, Lookup

_PORT = 123
_SINCE_1900_S = 2208988800


class Sntp:
    """One question to `server`, whose name `dns` knows."""

    def __init__(self, server, dns, random, since, ticks):
        self._lookup = Lookup(server, dns, random, since, ticks)
        self._since = since
        self._stamp = random(8)
        self._ask = None

    def turn(self, ticks):
        """Unix ms, or None as long as nothing fit has come. Raises OSError after 8 s."""
        if self._ask is None:
            host = self._lookup.turn(ticks)
            if host is None:
                return None
            packet = b"\x23" + bytes(39) + self._stamp  # version 4, client
            self._ask = Ask((host, _PORT), packet, self._since, ticks)
        try:
            reply = self._ask.turn(ticks)
        except OSError:
            self._ask.close()
            raise
        if reply is None or len(reply) < 48 or reply[24:32] != self._stamp:
            return None
        if reply[0] & 7 != 4 or not 0 < reply[1] < 16:  # mode server, a stratum
            return None
        self._ask.close()
        s = int.from_bytes(reply[40:44], "big")
        if s < 0x80000000:
            s += 0x100000000  # after 2036
        return (s - _SINCE_1900_S) * 1000
