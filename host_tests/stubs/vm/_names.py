"""The name server of the virtual board's network: what the unix VM's own resolver says.

Asked by UDP on port 53 or, for .local, 5353, where no test may listen. As the control port says:
it answers, answers that there is no such name, answers after 5 s, or not at all.
"""

from wires import dns, ticks_add, ticks_ms
from wires import socket as _native

_SLOW_MS = 5000
_NEVER_MS = 1 << 28


def answer(query):
    """(ticks when it comes, the reply) to a question for an A record (RFC 1035)."""
    labels = []
    at = 12
    while query[at]:
        labels.append(query[at + 1 : at + 1 + query[at]].decode())
        at += query[at] + 1
    asked = query[12 : at + 5]
    try:
        if dns() == 1:
            raise OSError(2)
        found = _native.getaddrinfo(".".join(labels), 0, _native.AF_INET, _native.SOCK_STREAM)
        address = bytes(found[0][4][4:8])
    except OSError:
        return ticks_ms(), query[:2] + b"\x81\x83\0\1\0\0\0\0\0\0" + asked  # NXDOMAIN
    head = query[:2] + b"\x81\x80\0\1\0\1\0\0\0\0"
    record = b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4" + address
    return ticks_add(ticks_ms(), (0, 0, _SLOW_MS, _NEVER_MS)[dns()]), head + asked + record
