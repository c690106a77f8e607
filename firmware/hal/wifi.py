"""Wi-Fi: joined when the access point is there, tried again when it is not.

`turn` never waits: the radio joins in the background and is looked at. A try that has not come up
in 20 s is ended and made again after a pause that doubles up to a minute. `why` says what is
wrong, for health reports.
"""

import network

_JOIN_MS = 20000
_LAST_WAIT_MS = 60000


class Wifi:
    def __init__(self, ssid, password, since):
        self._ssid = ssid
        self._password = password
        self._since = since
        self._wlan = network.WLAN(network.STA_IF)
        self._wlan.active(True)
        self._asked = None  # ticks of the running try
        self._rested = None
        self._wait_ms = 1000
        self.up = False
        self.why = "not joined yet"

    def turn(self, ticks):
        self.up = self._wlan.isconnected()
        if self.up:
            self.why = None
            self._asked = ticks
            self._wait_ms = 1000
        elif self._asked is not None:
            if self._since(self._asked) > _JOIN_MS:
                self._end("no answer from %r" % self._ssid, ticks)
        elif self._rested is None or self._since(self._rested) > self._wait_ms:
            self._asked = ticks
            try:
                self._wlan.connect(self._ssid, self._password)
            except OSError as e:
                self._end("cannot join %r: %s" % (self._ssid, e), ticks)

    def dns(self):
        """The name server's address."""
        return self._wlan.ifconfig()[3]

    def _end(self, why, ticks):
        self.why = why
        self._asked = None
        self._rested = ticks
        self._wait_ms = min(self._wait_ms * 2, _LAST_WAIT_MS)
        try:
            self._wlan.disconnect()
        except OSError:
            pass
