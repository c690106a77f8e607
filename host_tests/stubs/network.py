"""`network` of an ESP32: a station that joins whatever it is told, while Wi-Fi is in reach."""

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
        if what:
            return -55  # rssi
        if wires.link_state() != _CONNECT:
            return STAT_IDLE
        return STAT_GOT_IP if wires.wifi_in_reach() else STAT_NO_AP_FOUND

    def config(self, *name, **values):
        if name and name[0] == "mac":
            return wires.unique_id()
        return None

    def ifconfig(self, *address):
        ip = "127.0.0.1" if wires.online() else "0.0.0.0"
        return (ip, "255.0.0.0", ip, ip)


def hostname(*name):
    return name[0] if name else "esp32"


def country(*code):
    return code[0] if code else "XX"
