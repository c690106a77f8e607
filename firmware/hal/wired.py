"""Wired Ethernet: the chip's own MAC and a PHY beside it (`network.LAN`), as board.json says.

Nothing is tried here: the port takes the cable and asks for an address by itself, again whenever
one is plugged in. It is looked at, and what it has lacked for 20 s has a word: `lan_no_cable`,
`lan_no_address` (a cable, and no DHCP server answers), `lan_no_phy` (the PHY does not answer:
board.json is another board's, or it is broken). Source: MicroPython's ports/esp32/network_lan.c.

Limits: DHCP only. Wi-Fi stays off: up to MicroPython 1.28 its events would be taken for ours. A
PHY that did not answer is not asked again before the next boot. No Ethernet over SPI.
"""

import network
from machine import Pin

_LACKS_MS = 20000


class Wired:
    def __init__(self, spec, since, ticks):
        """`spec` is `lan` of board.json: `phy` as in network.PHY_..., its address `addr`, and the
        pins `mdc`, `mdio`, `power` and `ref_clk`, which is an output."""
        self._since = since
        self._well = ticks  # ticks when it was up, or its state was told
        self._lan = None
        self.up = False
        self.why = None
        try:
            lan = getattr(network, "LAN")(  # noqa: B009  # not every image has it
                mdc=Pin(spec["mdc"]),
                mdio=Pin(spec["mdio"]),
                power=Pin(spec["power"]),
                phy_type=getattr(network, "PHY_" + spec["phy"]),
                phy_addr=spec["addr"],
                ref_clk=Pin(spec["ref_clk"]),
                ref_clk_mode=Pin.OUT,
            )
            lan.active(True)
            self._lan = lan
        except (OSError, ValueError, AttributeError) as e:
            print("no Ethernet:", e)

    def turn(self, ticks):
        """Look. Gives the word for what is lacking, when it is another than before."""
        lan = self._lan
        self.up = lan is not None and lan.isconnected()
        if self.up:
            self.why = None
            self._well = ticks
        elif self._since(self._well) > _LACKS_MS:
            self._well = ticks
            why = "lan_no_phy"
            if lan is not None:
                there = lan.status() == network.ETH_CONNECTED
                why = "lan_no_address" if there else "lan_no_cable"
            if why != self.why:
                self.why = why
                return why
        return None

    def dns(self):
        """The name server's address."""
        return self._lan.ifconfig()[3]
