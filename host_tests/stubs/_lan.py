"""`network.LAN` of an ESP32 with a PHY: `wires.lan()` says 0 all is well, 1 no cable, 2 nobody
gives addresses, 3 no PHY. Numbers and states are the ESP32 port's (network_lan.c, modnetwork.h).
"""

import wires

PHY_LAN8710 = 0
PHY_LAN8720 = 1
ETH_INITIALIZED = 0
ETH_STARTED = 1
ETH_CONNECTED = 3
ETH_DISCONNECTED = 4
ETH_GOT_IP = 5

_OFF = 0
_LAN = 3


class LAN:
    def __init__(
        self, id=None, *, mdc, mdio, phy_type, phy_addr, power=None, reset=None, ref_clk=None,
        ref_clk_mode=-1,
    ):  # fmt: skip
        if not 0 <= phy_addr <= 31:
            raise ValueError("invalid phy address")
        if wires.lan() == 3:
            raise OSError("esp_eth_driver_install failed")

    def active(self, *on):
        if on:
            wires.link(_LAN if on[0] else _OFF)
        return wires.link_state() == _LAN

    def status(self):
        if wires.link_state() != _LAN:
            return ETH_INITIALIZED
        return (ETH_GOT_IP, ETH_DISCONNECTED, ETH_CONNECTED)[wires.lan()]

    def isconnected(self):
        return wires.online()

    def config(self, name):
        return wires.unique_id()

    def ifconfig(self, *address):
        ip = "127.0.0.1" if wires.online() else "0.0.0.0"
        return (ip, "255.0.0.0", ip, ip)
