"""`network` of an ESP32: a station that joins whatever it is told, and Ethernet (`_lan`).

What is in reach, and whether it lets one in, the wires say: `wifi()` 0 all is well, 1 no access
point, 2 it wants another password, 3 nobody gives addresses. Numbers and what `status` tells are
the ESP32 port's (network_wlan.c): while the port itself would try again, most reasons are hidden.
"""

import wires

STA_IF = 0
AP_IF = 1
STAT_IDLE = 1000
STAT_CONNECTING = 1001
STAT_GOT_IP = 1010
STAT_NO_AP_FOUND = 201
STAT_WRONG_PASSWORD = 202
STAT_BEACON_TIMEOUT = 200

_OFF = 0
_ACTIVE = 1
_CONNECT = 2


class WLAN:
    IF_STA = STA_IF
    IF_AP = AP_IF
    PM_NONE = 0
    PM_PERFORMANCE = 1
    PM_POWERSAVE = 2

    def __init__(self, id=STA_IF):
        if id != STA_IF:
            raise ValueError("the virtual board has only a station interface")
        self._reconnects = -1  # for ever

    def active(self, *on):
        if on:
            if not on[0]:
                wires.link(_OFF)
            elif wires.link_state() == _OFF:
                wires.link(_ACTIVE)
        return wires.link_state() != _OFF

    def connect(self, ssid=None, key=None, bssid=None):
        if wires.link_state() == _OFF:
            raise OSError("Wifi Internal Error")
        wires.link(_CONNECT)

    def disconnect(self):
        if wires.link_state() == _CONNECT:
            wires.link(_ACTIVE)

    def isconnected(self):
        return wires.online()

    def status(self, *what):
        told = wires.link_state() == _CONNECT
        air = wires.wifi()
        if what:
            if not told or air in (1, 2):
                raise OSError("Wifi Not Connected")
            return -55  # rssi
        if not told:
            return STAT_IDLE
        if air == 2:  # 15: the handshake came to no end
            return STAT_CONNECTING if self._reconnects < 0 else 15
        return (STAT_GOT_IP, STAT_NO_AP_FOUND, 15, STAT_CONNECTING)[air]

    def config(self, *name, **values):
        if name and name[0] == "mac":
            return wires.unique_id()
        self._reconnects = values.get("reconnects", self._reconnects)
        return None

    def ifconfig(self, *address):
        ip = "127.0.0.1" if wires.online() else "0.0.0.0"
        return (ip, "255.0.0.0", ip, ip)


def __getattr__(name):
    """Ethernet, for those who ask for it: here it is not in ROM."""
    import _lan

    return getattr(_lan, name)


def hostname(*name):
    return name[0] if name else "esp32"


def country(*code):
    return code[0] if code else "XX"
