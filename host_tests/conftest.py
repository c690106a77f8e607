"""Fixtures: the stage, and what `make setup` fetches from outside Python, the VM and the broker.

Where a program is missing (setup said so), its tests are skipped with that reason; with CI=true
they fail.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from host_tests.scenario_kit import Scene
from tools import paths


def _program(path: Path, name: str) -> Path:
    if not path.exists():
        reason = f"no {name} at {path.relative_to(paths.ROOT)}: run `make setup` for the cause"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return path


@pytest.fixture(scope="session")
def micropython() -> Path:
    """The MicroPython VM that `make setup` fetched."""
    return _program(paths.VM, "MicroPython VM")


@pytest.fixture(scope="session")
def mosquitto() -> Path:
    """The MQTT broker that `make setup` fetched."""
    return _program(paths.MOSQUITTO, "mosquitto")


@pytest.fixture
def scene(played: Scene) -> Iterator[Scene]:
    """The stage that a module has `played` on so far, back at an empty, available EVSE."""
    marks = played.marks()
    played.settle()
    yield played
    played.evidence(marks)
