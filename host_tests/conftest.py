"""Fixtures for what `make setup` fetches from outside Python: the VM and the broker.

Where one is missing (setup said so), its tests are skipped with that reason; with CI=true they
fail.
"""

import os
from pathlib import Path

import pytest

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
