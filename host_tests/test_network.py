"""What keeps the network away, on the virtual board: each cause has a name on the console, on
record, and in the health report; and nothing of it holds the loop up.

Firmware in the VM, mosquitto, the gateway; the link is plain, as on a plain ESP32.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from host_tests.link_kit import PLAIN, Certificates, Land
from tools.stage import STATION

HOUR_MS = 3_600_000
STALL_MS = 50  # DESIGN's budget for a turn of the loop without a sync
Make = Callable[..., Land]


@pytest.fixture
def make(tmp_path: Path, mosquitto: Path) -> Iterator[Make]:
    """A board with these changes to its config, provisioned, without power."""
    open_lands: list[Land] = []

    def made(**config: Any) -> Land:
        land = Land("mqtt", tmp_path, Certificates(), mosquitto, heap="112k", **config)
        open_lands.append(land.__enter__())
        land.point(PLAIN)
        land.provision(None)
        return land

    yield made
    for land in open_lands:
        land.__exit__()


def lacks(land: Land, word: str, **modes: str) -> None:
    """With the network so, the console says `word`."""
    seen = land.console().count(word)
    land.board.net(**modes)
    land.hurrying(lambda: land.console().count(word) > seen)


def told(land: Land, *words: str) -> None:
    """These have come to the gateway as records, each once."""

    def found() -> bool:
        whys = [r["why"] for r in land.records(t="refused", what="link")]
        return set(words) <= set(whys)

    land.hurrying(found)


def health(land: Land) -> dict[str, Any]:
    context = land.web.context
    with context.store.begin() as db:
        context.desk.queue(db, STATION, "GET_HEALTH", {}, context.now_ms())
    land.hurrying(lambda: land.station().health, 10_000)  # brief pictures have no answer
    found: dict[str, Any] = json.loads(land.station().health)
    return found


def steady(land: Land) -> None:
    """It has not restarted since its power came, and its loop was not held up."""
    assert land.board.boot() == 2, "the first was without firmware"
    assert land.board.stall()["ms"] <= STALL_MS


def loaded(land: Land) -> str:
    """Which of the two networks' code is on the board's heap. Ends the agent."""
    names = "[m for m in ('hal.wifi', 'hal.wired') if m in sys.modules]"
    return land.board.exec(f"import sys; print(*{names})").strip()


def test_wifi(make: Make) -> None:
    land = make()
    land.board.net(wifi="password")
    land.board.power_on()
    land.hurrying(lambda: "wifi_password" in land.console())
    lacks(land, "wifi_no_ap", wifi="down")
    lacks(land, "wifi_no_address", wifi="silent")
    assert not land.told()
    land.board.net(wifi="ok")
    land.hurrying(land.told)
    told(land, "wifi_password", "wifi_no_ap", "wifi_no_address")
    found = health(land)
    assert found["net"] == "up" and found["lost"] == "wifi_no_address" and found["losses"] >= 3
    steady(land)
    assert loaded(land) == "hal.wifi"


def test_an_access_point_that_is_gone_for_a_day(make: Make) -> None:
    land = make()
    land.board.power_on()
    land.hurrying(land.told)
    land.board.net(wifi="down")
    land.hurrying(lambda: "wifi_no_ap" in land.console())
    begun = land.board.get()["t_ms"]
    land.hurrying(lambda: land.board.get()["t_ms"] - begun > 24 * HOUR_MS, HOUR_MS // 4, 60)
    assert not land.station().online
    heard = len(land.records())
    land.board.net(wifi="ok")
    land.hurrying(lambda: len(land.records()) > heard and land.station().online)
    told(land, "wifi_no_ap")
    assert [r["count"] for r in land.records(t="refused", why="wifi_no_ap")] == [1]
    steady(land)


def test_names(make: Make) -> None:
    """The broker has a name. One that cannot be found is told; one that is found slowly does; and
    an address that was found before stays good while the name server is silent."""
    land = make()
    land.board.net(dns="fail")
    land.board.power_on()
    land.hurrying(lambda: "dns_no_name" in land.console())
    lacks(land, "dns_silent", dns="silent")
    assert not land.told()
    land.board.net(dns="slow")
    land.hurrying(land.told)
    told(land, "dns_no_name", "dns_silent")
    assert health(land)["lost"] in ("dns_no_name", "dns_silent")
    land.board.net(dns="silent")
    land.relay.cut()
    connections = land.relay.connections
    land.hurrying(lambda: land.relay.connections > connections and land.station().online)
    steady(land)


def test_ethernet(make: Make) -> None:
    land = make(network={"kind": "lan"})
    land.board.power_on()
    land.hurrying(land.told)
    lacks(land, "lan_no_cable", lan="unplugged")
    lacks(land, "lan_no_address", lan="silent")
    land.board.net(lan="ok")
    told(land, "lan_no_cable", "lan_no_address")
    assert health(land)["lost"] == "lan_no_address"
    steady(land)
    land.board.power_off()
    land.board.net(lan="broken", wifi="ok")
    land.board.power_on()
    land.hurrying(lambda: "lan_no_phy" in land.console())
    assert land.board.get()["evses"]["1"]["agent"]["status"] == "AVAILABLE", "it works on"
    assert loaded(land) == "hal.wired"
