"""What a seed stands for: the site, its tempers, and which faults strike."""

from __future__ import annotations

import json
from dataclasses import dataclass
from random import Random
from typing import Any

from wattlock import config as wattlock_config

STATION = "SIM-1"
HOUR_MS = 3_600_000


@dataclass
class Plan:
    seed: int
    evses: int
    config: dict[str, Any]
    length_ms: int  # of the story; peace comes after it
    fine_ms: int  # a turn of the loop while something happens
    coarse_ms: int  # and while nothing does
    ticks0: int
    ppm: int
    flash_blocks: int
    small_journal: bool  # segments are recycled within the story
    faults: int  # how many of them
    patience: int  # how much longer than usual people stay away

    def random(self, what: str) -> Random:
        """The random source of one part; parts do not disturb each other's."""
        return Random(f"{self.seed}/{what}")


def make(seed: int) -> Plan:
    rng = Random(f"{seed}/plan")
    ticks0 = rng.getrandbits(30)
    if rng.random() < 0.3:  # they wrap within the story
        ticks0 = (1 << 30) - rng.randint(0, 2 * HOUR_MS)
    evses = 2 if rng.random() < 0.3 else 1
    weeks = rng.random() < 0.02  # longer than ticks can tell apart
    board = {
        "board": "sim",
        "uarts": {"1": {}},
        "evses": {str(n): {} for n in range(1, evses + 1)},
    }
    bookings = Random(f"{seed}/bookings")  # a source of its own, as every part has
    site = {
        "station_id": STATION,
        "board": "sim",
        "link": {"kind": "mqtt", "host": "gateway", "insecure": True},
        "buses": {"rs485": {"kind": "rtu", "uart": 1}},
        "evses": [
            {
                "n": n,
                "meter": "simulated",
                "bus": "rs485",
                "unit": n,
                "max_a": rng.choice((16, 32)),
                "phases": rng.choice((1, 3)),
                "require_meter": rng.random() < 0.85,
                "on_power_return": "resume" if rng.random() < 0.8 else "stop",
                "clock_lost": "hold" if rng.random() < 0.85 else "release",
                "free_vend": rng.random() < 0.1,
                "overstay": "stop" if bookings.random() < 0.8 else "charge",
            }
            for n in range(1, evses + 1)
        ],
        "live_s": rng.choice((60, 300, 600)),
        "bookings": bookings.random() < 0.5,
    }
    return Plan(
        seed=seed,
        evses=evses,
        config=wattlock_config.load(json.dumps(site), board, ["simulated"]),
        length_ms=9 * 24 * HOUR_MS if weeks else rng.choice((1, 2, 3, 4, 6, 12)) * HOUR_MS,
        fine_ms=rng.choice((50, 100, 200, 200, 250)),
        coarse_ms=12_000 if weeks else rng.choice((2000, 5000, 10_000)),
        ticks0=ticks0,
        ppm=rng.randint(-80, 80),
        flash_blocks=rng.choice((64, 96, 128)),
        small_journal=rng.random() < 0.3,
        faults=0 if weeks else rng.choice((1, 2, 3, 4, 6, 8)),
        patience=150 if weeks else 1,
    )
