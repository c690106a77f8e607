"""`make size`: it measures, its lines add up, and two ways of measuring agree."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tools import paths, shrink, size
from tools.virtual_board import vm


@pytest.fixture(scope="module")
def found(micropython: Path) -> dict[str, Any]:
    command = [micropython, "-c", "import sys; print(sys.maxsize < 2**31)"]
    narrow = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    if narrow.strip() != "True":
        pytest.skip("sizes are those of the 32-bit VM, this one has 64 bits")
    done = subprocess.run(
        [sys.executable, "-m", "tools.size", "--json"],
        cwd=paths.ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_lines_add_up(found):
    agent = found["agent"]
    assert sum(agent.values()) == found["resident"]
    assert sum(agent.values()) + sum(found["not_on_a_board"].values()) == found["used"]
    assert found["budget"] == 56 * 1024


def test_every_module_of_the_running_agent_has_a_line(found):
    agent = found["agent"]
    assert {"wattlock.app", "wattlock.journal", "hal.mqtt", "hal.rs485"} <= set(agent)
    assert "hal.tcp" not in agent, "a bus that the configuration does not name is not loaded"
    assert "hal.wifi" in agent and "hal.wired" not in agent, "nor the other network"
    assert "wattlock.native" in agent, "its code is outside of the heap, its objects are not"
    assert all(number > 0 for number in agent.values()), agent


def test_what_main_forgets_is_gone(found):
    gone = found["start_up_only"]
    absent = set(size.forgotten()) - set(gone)  # parts that this configuration does not load
    assert [name for name in size.forgotten() if name not in absent] == list(gone)
    modules = {".".join(name.split(".")[:2]) for name in absent}
    assert modules <= {"hal.pulse", "hal.tcp", "hal.wired"}
    assert "wattlock.config" in gone
    assert not set(gone) & set(found["agent"])
    assert all(number > 0 for number in gone.values()), gone


def test_modules_weigh_what_they_hold(found):
    """A line of source costs 10 to 40 bytes, so a large module is heavier than a small one."""
    agent = found["agent"]
    assert agent["wattlock.app"] > agent["wattlock.journal"] > agent["wattlock.lock"]
    for name in ("wattlock.app", "wattlock.evse", "wattlock.journal"):
        lines = len(size.source(name).read_text().splitlines())
        assert 5 * lines < agent[name] < 50 * lines


def test_stubs_and_umqtt_are_what_the_virtual_board_adds(found):
    assert abs(sum(found["not_on_a_board"].values()) - vm.STUBS_HEAP) < 4096


def test_the_run_at_the_limit_agrees_with_the_sum_of_the_lines(found):
    """Measured twice: module by module with room, and at once as main.py starts it."""
    idle = found["live"]["moments"]["connected, idle"]
    assert abs(idle["used"] - found["used"]) < 0.03 * found["used"]
    for moment in found["live"]["moments"].values():
        assert 0 < moment["largest"] <= moment["free"]
        whole = moment["used"] + moment["free"]
        assert 0.97 * (96 * 1024 + vm.STUBS_HEAP) < whole <= 96 * 1024 + vm.STUBS_HEAP


def test_the_agent_grows_no_further(found):
    """The budget of 56 KiB is not met; whoever adds to the agent takes away elsewhere."""
    assert found["resident"] <= 81 * 1024


def test_the_agent_lives_within_96_kib(found):
    """With what a message of 4 KB and its objects take to spare, and in one piece what is asked
    for at once: a segment's group, a message that comes."""
    live = found["live"]
    assert live["error"] is None
    assert live["restarts"] == 0
    for moment in live["moments"].values():
        assert moment["free"] >= 12 * 1024 and moment["largest"] >= 5 * 1024, live["moments"]


def test_a_thousand_records_that_nobody_acknowledged_are_told_within_96_kib(found):
    old = found["drained"]
    assert old["error"] is None and old["restarts"] == 0
    assert old["records"] >= size.LIVE and old["bytes"] > 90_000
    assert old["whole"], "each once, in order, byte for byte"
    assert old["wrong"] == [], "neither lost, nor refused, nor a part that failed"
    assert old["growth"] < 512, "the heap does not depend on how many were told"
    # one message is made or read at a time: 4 KB, its objects, and the commands' window
    most, rest = (old["moments"][name]["used"] for name in list(old["moments"]))
    assert most - rest < 3 * 4096
    # what is asked for in one piece beside a message that is made already: a group of the journal
    for moment in old["moments"].values():
        assert moment["free"] >= 6 * 1024 and moment["largest"] >= 1024, old["moments"]


def test_what_a_configuration_brings_has_its_own_line(found):
    added = found["by_configuration"]
    assert set(added) == set(size.FEATURES)
    assert all(0 < number < 20_000 for number in added.values()), added


def test_the_table_names_what_is_over(found):
    text = size.table(found)
    assert f"{found['resident']:,}" in text
    assert ("over the budget by" in text) == (found["resident"] > found["budget"])


def test_modules_come_after_what_they_import():
    files = [p for package in shrink.PACKAGES for p in (paths.FIRMWARE / package).glob("*.py")]
    names = {f"{p.parent.name}.{p.stem}".removesuffix(".__init__") for p in files}
    order = size.in_order(names)
    assert set(order) == names
    assert order.index("wattlock") < order.index("wattlock.errors") < order.index("hal.flash")
    assert order.index("hal.wallclock") < order.index("hal.board")
    for name in order:
        for needed in size.imports(name) & set(order):
            assert order.index(needed) < order.index(name)
