"""The meters that the project knows: firmware/meters/<key>.json, one file a meter."""

import difflib
import json
from typing import Any

from tools import paths

METERS = paths.FIRMWARE / "meters"

Description = dict[str, Any]


def known() -> list[str]:
    return sorted(path.stem for path in METERS.glob("*.json"))


def load(key: str) -> Description:
    """The description of a meter; LookupError names the remedy."""
    path = METERS / f"{key}.json"
    if key not in known():
        near = difflib.get_close_matches(key, known(), 3, 0.4) or known()[:3]
        raise LookupError(
            f"meter {key!r} is unknown: did you mean {', '.join(near)}? "
            "`python -m tools.meter list` shows all"
        )
    return json.loads(path.read_text())
