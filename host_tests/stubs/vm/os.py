"""`os` with the name of the board, by which tools know what they talk to."""

from uos import *  # noqa: F403
from uos import ilistdir as _ilistdir


def uname():
    import sys
    from collections import namedtuple

    release = ".".join(str(n) for n in sys.implementation[1][:3])
    return namedtuple("uname", ("sysname", "nodename", "release", "version", "machine"))(
        "esp32", "esp32", release, sys.version, sys.implementation[2]
    )


def ilistdir(*path):
    for entry in _ilistdir(*path):
        if entry[0] != "_stubs":  # a mount of the virtual board that no real board has
            yield entry


def listdir(*path):
    return [entry[0] for entry in ilistdir(*path)]
