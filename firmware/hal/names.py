"""Questions by UDP that nobody waits for, and the one that finds a host's address (RFC 1035).

`socket.getaddrinfo` blocks for as long as the name server is silent, on an ESP32 for some ten
seconds, longer than a watchdog's patience. Here the question is sent, sent again each second, and
looked for in between. After 8 s it is an OSError.

A name in .local goes to the whole network in the same words; who bears it answers the asker alone
(RFC 6762, 5.1 and 6.7).

Limits: A records (IPv4) of the first name server; the answer must fit 512 bytes. It is not
authenticated: whom one has reached, TLS and the messages' MACs tell.
"""

import socket

from wattlock.errors import LinkError

_AGAIN_MS = 1000
_LAST_MS = 8000
_PORT = 53
_EVERYBODY = ("224.0.0.251", 5353)  # multicast DNS


class Ask:
    """One question to (host, port)."""

    def __init__(self, to, packet, since, ticks):
        self._to = socket.getaddrinfo(to[0], to[1])[0][-1]
        self._packet = packet
        self._since = since
        self._began = ticks
        self._asked = None
        self._sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._sock.setblocking(False)

    def turn(self, ticks):
        """What came, or None. Raises OSError after 8 s."""
        if not 0 <= self._since(self._began) <= _LAST_MS:  # below 0: as in Link._due
            raise OSError("no answer")
        if self._asked is None or self._since(self._asked) >= _AGAIN_MS:
            self._asked = ticks
            self._sock.sendto(self._packet, self._to)
        try:
            return self._sock.recv(512)
        except OSError as e:
            if e.errno != 11:  # EAGAIN
                raise
        return None

    def close(self):
        self._sock.close()


def find(link, host, net, random, since, ticks):
    """The address of a link's host, or None: it is being asked for. One that was found before
    stays good when nobody answers. Raises LinkError with a word: `dns_no_server` (the network
    named none), `dns_silent`, `dns_no_name`."""
    try:
        if link.lookup is None:
            link.lookup = Lookup(host, net.dns(), random, since, ticks)
        found = link.lookup.turn(ticks)
    except OSError as e:
        found = link.found
        if found is None:
            link.lookup = None
            raise LinkError("no address for %r" % host, e.args[0])
    if found is not None:
        link.lookup = None
        link.found = found
    return found


class Lookup:
    """The address of `host`, asked of the name server at `dns`, in .local of all who hear; an
    address is its own. Raises OSError(word)."""

    def __init__(self, host, dns, random, since, ticks):
        self._host = host
        self._ask = None
        if host.strip(".0123456789"):
            to = (dns, _PORT)
            if host.endswith(".local"):
                to = _EVERYBODY
            elif dns == "0.0.0.0":
                raise OSError("dns_no_server")
            self._id = random(2)
            packet = self._id + b"\1\0\0\1\0\0\0\0\0\0"
            for label in host.split("."):
                packet += bytes((len(label),)) + label.encode()
            self._skip = len(packet) + 5
            self._ask = Ask(to, packet + b"\0\0\1\0\1", since, ticks)

    def turn(self, ticks):
        """The address, or None as long as it has not come. Raises OSError(word)."""
        if self._ask is None:
            return self._host
        why = "dns_silent"
        try:
            reply = self._ask.turn(ticks)
            if reply is None or reply[:2] != self._id:
                return None
            why = "dns_no_name"
            host = self._first(reply)
        except (OSError, IndexError):
            self._ask.close()
            raise OSError(why)
        self._ask.close()
        return host

    def _first(self, reply):
        """The first address among the answers."""
        at = self._skip
        for _ in range(reply[6] << 8 | reply[7]):
            while reply[at] and reply[at] < 192:
                at += reply[at] + 1
            at += 2 if reply[at] else 1
            size = reply[at + 8] << 8 | reply[at + 9]
            if reply[at + 1] == 1 and not reply[at] and size == 4:
                return "%d.%d.%d.%d" % tuple(reply[at + 10 : at + 14])
            at += 10 + size
        raise IndexError
