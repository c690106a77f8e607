"""The picture of a demo: power, energy, status, reservation and power cuts over one time axis."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tools.stage import Stage

STATUS_COLOURS = {
    "AVAILABLE": "#2e9e5b",
    "RESERVED": "#e0a100",
    "CHARGING": "#2f6fde",
    "UNKNOWN": "#b0b0b0",
    "OUTOFORDER": "#c03030",
    "INOPERATIVE": "#8a5a2b",
}
WHITE: dict[str, Any] = {"va": "center", "fontsize": 8, "color": "white"}


@dataclass
class Sample:
    at_s: float
    power_w: int
    meter_wh: int
    status: str | None
    kwh: float | None  # of the Session at the eMSP


@dataclass
class Timeline:
    """Samples the stage twice a second within its `with` block; the story puts in the marks."""

    stage: Stage
    begun: float = field(default_factory=time.monotonic)
    samples: list[Sample] = field(default_factory=list)
    marks: list[tuple[float, str]] = field(default_factory=list)
    cuts: list[list[float]] = field(default_factory=list)
    reserved: list[float] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._running = True
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._running = False
        self._thread.join(10)

    def now(self) -> float:
        return time.monotonic() - self.begun

    def mark(self, text: str) -> None:
        self.marks.append((self.now(), text))

    def cut(self) -> None:
        self.cuts.append([self.now()])

    def back(self) -> None:
        self.cuts[-1].append(self.now())

    def _sample(self) -> None:
        while self._running:
            meter = self.stage.meter.ask("get")
            held = self.stage.emsp()
            session = next(iter(held["sessions"].values()), None)
            self.samples.append(
                Sample(
                    self.now(),
                    meter["w"],
                    meter["wh"],
                    next((e["status"] for e in held["evses"].values()), None),
                    session and session["kwh"],
                )
            )
            time.sleep(0.4)

    def draw(self, path: Path, title: str) -> None:
        """Write the picture to `path` (PNG)."""
        at = [s.at_s for s in self.samples]
        first_wh = self.samples[0].meter_wh
        figure = Figure(figsize=(12, 7.2), layout="constrained")
        power, energy, status = figure.subplots(
            3, 1, sharex=True, gridspec_kw={"height_ratios": (3, 3, 1.3)}
        )
        figure.suptitle(title, fontsize=13, x=0.01, ha="left", fontweight="bold")
        kw = [s.power_w / 1000 for s in self.samples]
        power.fill_between(at, kw, step="post", color="#2f6fde", alpha=0.35, linewidth=0)
        power.set_ylabel("power at the meter\nkW")
        power.set_ylim(0, max(25, max(kw) * 1.25))
        wh = [s.meter_wh - first_wh for s in self.samples]
        energy.step(at, wh, where="post", color="#555555", label="meter's register: its advance")
        told = [(s.at_s, 1000 * s.kwh) for s in self.samples if s.kwh is not None]
        style: dict[str, Any] = {"color": "#c2410c", "linewidth": 2, "label": "kwh at the eMSP"}
        energy.step([t for t, _ in told], [wh for _, wh in told], where="post", **style)
        energy.set_ylabel("energy\nWh")
        energy.legend(loc="upper left", frameon=False)
        self._bands(status, at)
        for axis in (power, energy, status):
            for cut in self.cuts:
                axis.axvspan(cut[0], cut[-1], color="#c03030", alpha=0.16, linewidth=0)
            axis.spines[["top", "right"]].set_visible(False)
            axis.set_xlim(0, at[-1])
        for cut in self.cuts:
            power.text(cut[0] + 0.1, 0.5, "no power", color="#c03030", fontsize=8)
        self._notes(power)
        status.set_xlabel("seconds since the eMSP registered")
        figure.savefig(path, dpi=110)

    def _bands(self, axis: Axes, at: list[float]) -> None:
        begin = 0
        shown = set()
        for i in range(1, len(self.samples) + 1):
            if i < len(self.samples) and self.samples[i].status == self.samples[begin].status:
                continue
            name = self.samples[begin].status or "UNKNOWN"
            end = at[i] if i < len(at) else at[-1]
            colour = STATUS_COLOURS.get(name, "black")
            axis.barh(1, end - at[begin], left=at[begin], height=0.7, color=colour)
            if name not in shown or end - at[begin] > 4:
                axis.text(at[begin] + 0.2, 1, name, **WHITE)
                shown.add(name)
            begin = i
        if len(self.reserved) == 2:
            first, last = self.reserved
            axis.barh(0, last - first, left=first, height=0.7, color=STATUS_COLOURS["RESERVED"])
            axis.text(first + 0.2, 0, "for Alice", **WHITE)
        axis.set_yticks([0, 1], ["reservation", "EVSE status\nat the eMSP"])
        axis.set_ylim(-0.5, 1.5)

    def _notes(self, axis: Axes) -> None:
        """Numbered marks above the power; their texts step down so as not to meet."""
        top = axis.get_ylim()[1]
        for i, (at, text) in enumerate(self.marks):
            y = top * (0.97 - 0.105 * (i % 9))
            axis.axvline(at, ymax=0.97 - 0.105 * (i % 9), color="#888888", linewidth=0.7, zorder=0)
            right = at > self.samples[-1].at_s * 0.72
            box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1}
            side = "right" if right else "left"
            x = at - 0.2 if right else at + 0.2
            axis.text(x, y, text, fontsize=8, va="top", ha=side, bbox=box)
