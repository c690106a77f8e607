"""`time` as on an ESP32: ticks wrap at 2^30 ms, seconds count from 2000; time may skip ahead."""

from utime import gmtime as _gmtime
from utime import mktime as _mktime
from utime import sleep_us, ticks_cpu, ticks_us  # noqa: F401
from wires import sleep_ms, ticks_add, ticks_diff, ticks_ms, unix_ms  # noqa: F401

_EPOCH_S = 946684800  # 2000-01-01 in Unix time


def sleep(seconds):
    sleep_ms(int(seconds * 1000))


def time():
    return unix_ms() // 1000 - _EPOCH_S


def time_ns():
    return (unix_ms() - _EPOCH_S * 1000) * 1000000


def gmtime(seconds=None):
    return _gmtime((time() if seconds is None else seconds) + _EPOCH_S)[:8]


localtime = gmtime


def mktime(t):
    return int(_mktime(tuple(t)[:8] + (0,))) - _EPOCH_S  # the VM runs with TZ=UTC
