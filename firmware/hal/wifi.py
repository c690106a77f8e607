"""Wi-Fi: joined when the access point is there, tried again when it is not.

`turn` never waits: the radio joins in the background and is looked at. A try that has not come up
in 20 s is ended and made again after a pause that doubles up to a minute.

Why a try failed is the chip's last word on it, which MicroPython hides while the port itself tries
again: so that is bounded to one time more (`reconnects`). The words: `wifi_no_ap`, no access point
of that name in reach; `wifi_password`, it refused the password, or the handshake that proves it
came to no end; `wifi_security`, it wants a kind of security that we have not; `wifi_no_address`,
joined, and no DHCP server answered; `wifi_no_answer`, nothing came of it in 20 s; else `wifi_` and
ESP-IDF's number (`wifi_err_reason_t`). Source: MicroPython's ports/esp32/network_wlan.c.
"""

import network

_JOIN_MS = 20000
_LAST_WAIT_MS = 60000

_NO_AP = 201
_SECURITY = 210  # 210 and 211
_NOT_HEARD = 212  # too far away
_PASSWORD = 202
_HANDSHAKE = 204
_4WAY_HANDSHAKE = 15
_STATES = 1000  # idle, connecting: no reason at all


class Wifi:
    def __init__(self, ssid, password, since):
        self._ssid = ssid
        self._password = password
        self._since = since
        self._wlan = network.WLAN(network.STA_IF)
        self._wlan.active(True)
        self._wlan.config(reconnects=1)
        self._asked = None  # ticks of the running try
        self._rested = None
        self._wait_ms = 1000
        self.up = False
        self.why = None  # what the try before came to

    def turn(self, ticks):
        """Look, or try. Gives the word for what a try came to where the one before came to
        something else."""
        self.up = self._wlan.isconnected()
        if self.up:
            self.why = None
            self._asked = ticks
            self._wait_ms = 1000
        elif self._asked is not None:
            if self._since(self._asked) > _JOIN_MS:
                return self._end(self._reason(), ticks)
        elif self._rested is None or self._since(self._rested) > self._wait_ms:
            self._asked = ticks
            try:
                self._wlan.connect(self._ssid, self._password)
            except (OSError, RuntimeError) as e:  # the port knows both
                return self._end(str(e), ticks)
        return None

    def dns(self):
        """The name server's address."""
        return self._wlan.ifconfig()[3]

    def _reason(self):
        wlan = self._wlan
        try:
            wlan.status("rssi")
            return "wifi_no_address"
        except OSError:
            pass  # not joined
        code = wlan.status()
        if code in (_NO_AP, _NOT_HEARD):
            return "wifi_no_ap"
        if code in (_PASSWORD, _HANDSHAKE, _4WAY_HANDSHAKE):
            return "wifi_password"
        if code in (_SECURITY, _SECURITY + 1):
            return "wifi_security"
        return "wifi_%d" % code if code < _STATES else "wifi_no_answer"

    def _end(self, why, ticks):
        self._asked = None
        self._rested = ticks
        self._wait_ms = min(self._wait_ms * 2, _LAST_WAIT_MS)
        try:
            self._wlan.disconnect()
        except (OSError, RuntimeError):
            pass
        news = why != self.why
        self.why = why
        return why if news else None
