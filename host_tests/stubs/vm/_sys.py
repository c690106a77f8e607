"""What `sys` says on an ESP32 and the VM's does not: which board this is. The rest is the VM's."""

import sys as _sys
from collections import namedtuple

from wires import os as _os

_i = _sys.implementation
implementation = namedtuple("implementation", ("name", "version", "_machine", "_mpy", "_build"))(
    _i[0], _i[1], _os.getenv("WIRES_MACHINE"), _i[3], _os.getenv("WIRES_MACHINE")
)
platform = "esp32"


def __getattr__(name):
    return getattr(_sys, name)
