"""What the eMSP holds: every object as received, every request, every violation.

Purpose: evidence. ``DIR/log.jsonl`` has each request with its time and what was wrong with it;
``DIR/state.json`` is the newest state, so that a restarted eMSP is still registered.
Theory: one `Book`, one process, written after each change (write, then rename).
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any


def loads(text: str | bytes) -> Any:
    """JSON with exact decimals."""
    return json.loads(text, parse_float=Decimal)


def dumps(value: Any) -> str:
    return json.dumps(value, default=_number, separators=(",", ":"))


def _number(value: Any) -> Any:
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    raise TypeError(f"{type(value).__name__} is not JSON")


@dataclass
class State:
    token_b: str | None = None  # the CPO shows it to us
    token_c: str | None = None  # we show it to the CPO
    base_url: str | None = None  # by which the CPO knows us
    endpoints: list[dict[str, Any]] = field(default_factory=list)
    cpo: dict[str, str] = field(default_factory=dict)  # country_code, party_id
    locations: dict[str, Any] = field(default_factory=dict)
    sessions: dict[str, Any] = field(default_factory=dict)
    cdrs: dict[str, Any] = field(default_factory=dict)
    cdr_texts: dict[str, str] = field(default_factory=dict)  # as the bytes came
    commands: dict[str, Any] = field(default_factory=dict)
    bookings: dict[str, Any] = field(default_factory=dict)
    booking_locations: dict[str, Any] = field(default_factory=dict)
    tokens: dict[str, Any] = field(default_factory=dict)  # driver -> Token
    authorized: list[dict[str, Any]] = field(default_factory=list)  # answers in real time
    violations: list[dict[str, Any]] = field(default_factory=list)
    error: str | None = None


class Book:
    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._log_path = folder / "log.jsonl"
        self._state_path = folder / "state.json"
        self.state = State()
        if self._state_path.exists():
            self.state = State(**loads(self._state_path.read_text()))

    def save(self) -> None:
        new = self._state_path.with_suffix(".new")
        new.write_text(dumps(asdict(self.state)))
        new.replace(self._state_path)

    def log(self, event: str, **fields: Any) -> None:
        line = dumps({"at_ms": time.time_ns() // 1_000_000, "event": event, **fields})
        with self._log_path.open("a") as file:
            file.write(line + "\n")

    def violation(self, where: str, text: str) -> None:
        """Something the standard does not allow."""
        self.state.violations.append(
            {"at_ms": time.time_ns() // 1_000_000, "where": where, "what": text}
        )
        self.log("violation", where=where, what=text)
        self.save()
