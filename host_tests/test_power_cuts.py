"""Power cuts at every program and erase of a life on real LittleFS: see vm_cuts.py, promises.py.

The suite plays them all, clean and torn in the middle; `make soak` adds programs and erases that
leave scattered bits.
"""

from pathlib import Path
from typing import Any

import pytest

from host_tests import power_cuts

pytestmark = pytest.mark.timeout(600)

STEPS = (
    "first_boot", "reservation", "start", "samples", "power_cut", "stop", "remote_session",
    "recycling", "config_change", "token_sync", "config_by_command", "booking",
    "slot_switch",
)  # fmt: skip


def test_no_cut_of_a_life_breaks_a_promise(micropython: Path) -> None:
    outcome = power_cuts.run()
    print(outcome)
    assert outcome.broken == []
    assert outcome.counts["cuts"] == 2 * outcome.operations + 1 > 2000
    assert outcome.counts["mounts failed"] == 0
    assert set(outcome.steps) == set(STEPS)
    assert min(outcome.steps.values()) > 10
    # what the cuts are for has been met
    for what, least in {"resumed": 100, "held": 100, "used": 100, "expired": 20}.items():
        assert outcome.counts[what] > least, what


def test_no_cut_of_a_new_board_s_first_hour_does(micropython: Path) -> None:
    """The journal's first segment, on a file system that was never written to."""
    steps = ["first_boot", "reservation", "start", "stop"]
    outcome = power_cuts.run(fresh=True, steps=steps)
    assert outcome.broken == [] and outcome.counts["cuts"] > 200
    assert set(outcome.steps) == set(steps)


BOOKED: dict[str, Any] = {
    "stride": 5, "fresh": True, "steps": ["first_boot", "config_change", "booking"]
}  # fmt: skip
SLOT: dict[str, Any] = {"stride": 1, "fresh": True, "steps": ["first_boot", "slot_switch"]}


@pytest.mark.parametrize(
    ("mutation", "promises", "more"),
    [
        ("energy_of_the_cut_lost", {"P1"}, {}),
        ("old_segment_first", {"P2"}, {}),
        ("dark_session_resumed", {"P3"}, {"stride": 10}),
        ("any_card_opens", {"P3", "P4"}, {}),
        ("reservations_forgotten", {"P4"}, {}),
        ("slots_forgotten", {"P4"}, BOOKED),
        ("never_expires", {"P5"}, {}),
        # a configuration that is obeyed again and again would restart it for ever
        ("obeys_again", {"P6"}, {"steps": [s for s in STEPS if s != "config_by_command"]}),
        ("opens_late", {"P7"}, {}),
        ("slot_in_place", {"P8"}, SLOT),
    ],
)
def test_an_agent_that_is_wrong_in_one_place_is_caught(
    micropython: Path, mutation: str, promises: set[str], more: dict[str, Any]
) -> None:
    outcome = power_cuts.run(**{"stride": 25, "mutation": mutation} | more)
    found = {row["broken"].partition(":")[0] for row in outcome.broken}
    assert promises & found, outcome.broken[:3]
