"""A flash that is full, takes nothing, gives nothing, or gives garbage: see vm_broken.py."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from tools import build, paths

PLAYS = paths.ROOT / "host_tests" / "vm_broken.py"
NAMES = re.findall(r"^def (\w+)\(\):\n    \"\"\"", PLAYS.read_text(), re.M)


@pytest.mark.parametrize("play", NAMES)
def test_the_agent_on_a_bad_flash(micropython: Path, play: str) -> None:
    host = {
        "meters": {"eastron_sdm630_v2": build.meter_file("eastron_sdm630_v2").decode()},
        "door": (paths.FIRMWARE / "main.py").read_text(),
        "test": play,
    }
    done = subprocess.run(
        [micropython, "-X", "heapsize=6m", PLAYS],
        env={"MICROPYPATH": f"{paths.FIRMWARE}:{paths.ROOT / 'host_tests'}"},
        input=json.dumps(host),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.stdout.endswith("done\n"), done.stdout[-2000:] + done.stderr[-2000:]
