"""Draws charts as SVG text, which is small, sharp at any size, and needs no script."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup, escape

from crystal_jax.report.groups import symbol

WIDTH, HEIGHT = 360, 210  # user units of a histogram, about one pixel each
FULL_WIDTH, FULL_HEIGHT = 1120, 300  # user units of a chart as wide as the page
LEFT, RIGHT, TOP, BOTTOM = 40, 20, 12, 38  # margins around the plotting area


_FRACTIONAL = {"g/cm^3": "g/cm³", "eV/atom": "eV per atom"}  # units as shown, for quantities that are not whole numbers


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Returns about `count` round numbers in [low, high]; steps are 1, 2 or 5 times a power of ten."""
    if not high > low:
        return [low]
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    return [i * step for i in range(math.ceil(low / step), math.floor(high / step + 1e-9) + 1)]


class Frame:
    """Axes of a chart: maps data to user units and collects the SVG elements."""

    def __init__(self, x: tuple[float, float], y: tuple[float, float], width: int = WIDTH, height: int = HEIGHT):
        self.x_range, self.y_range, self.width, self.height = x, y, width, height
        self.parts: list[str] = []

    def x(self, value: float) -> float:
        """Returns the horizontal position of a value, from the left."""
        low, high = self.x_range
        return LEFT + (value - low) / ((high - low) or 1) * (self.width - LEFT - RIGHT)

    def y(self, value: float) -> float:
        """Returns the vertical position of a value, from the top."""
        low, high = self.y_range
        return self.height - BOTTOM - (value - low) / ((high - low) or 1) * (self.height - TOP - BOTTOM)

    def axes(self, x_label: str, *, percent: bool = False, whole: bool = False, labels: bool = True) -> None:
        """Draws grid lines, tick labels (on the horizontal axis if `labels`) and the name of the horizontal axis."""
        for value in ticks(*self.y_range, count=4):
            text = f"{100 * value:.3g} %" if percent else f"{value:.4g}"
            self.parts.append(f'<path class="grid" d="M{LEFT} {self.y(value):.1f}H{self.width - RIGHT}"/>')
            self.text(LEFT - 5, self.y(value) + 3.5, text, "end")
        for value in ticks(*self.x_range, count=6 if self.width == WIDTH else 10) if labels else []:
            if not whole or value == round(value):
                self.text(self.x(value), self.height - BOTTOM + 15, f"{value:,.6g}", "middle")
        self.text((LEFT + self.width - RIGHT) / 2, self.height - 5, x_label, "middle", "label")

    def text(self, x: float, y: float, text: str, anchor: str, kind: str = "tick") -> None:
        """Draws a text at a position in user units."""
        self.parts.append(f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>')

    def line(self, points: Sequence[tuple[float, float]], kind: str) -> None:
        """Draws a line through data points; `kind` is a class of the style sheet."""
        path = "L".join(f"{self.x(x):.1f} {self.y(y):.1f}" for x, y in points)
        self.parts.append(f'<path class="{kind}" d="M{path}"/>')

    def svg(self, title: str) -> Markup:
        """Returns the complete chart; screen readers read the title."""
        body = "".join(self.parts)
        box = f"0 0 {self.width} {self.height}"
        return Markup(f'<svg viewBox="{box}" role="img" aria-label="{escape(title)}">{body}</svg>')


def histogram(data: dict[str, Any]) -> Markup:
    """Draws bars for the samples and an outline for the reference, each as shares of its own total.

    Args:
        data: from `metrics.json`: `label`, `unit`, `edges` (n + 1), and counts `samples` and `reference` (n).
    """
    edges = data["edges"]
    shares = {name: _shares(data[name]) for name in ("samples", "reference")}
    top = max(*shares["samples"], *shares["reference"], 1e-3)
    frame = Frame((edges[0], edges[-1]), (0, 1.05 * top))
    unit = _FRACTIONAL.get(data["unit"])
    whole = unit is None
    frame.axes(data["label"] if whole else f"{data['label']} ({unit})", percent=True, whole=whole)
    for low, high, share, count in zip(edges, edges[1:], shares["samples"], data["samples"], strict=False):
        left, width = frame.x(low), frame.x(high) - frame.x(low)
        gap = min(1.0, width / 8)
        span = f"{math.ceil(low)}" if whole and high - low == 1 else f"{low:.3g} to {high:.3g}"
        place = f'x="{left + gap:.1f}" y="{frame.y(share):.1f}" width="{width - 2 * gap:.1f}"'
        height = f'height="{frame.y(0) - frame.y(share):.1f}"'
        frame.parts.append(f'<rect class="samples" {place} {height}><title>{span}: {count} samples</title></rect>')
    if sum(data["reference"]):
        bins = zip(edges, edges[1:], shares["reference"], strict=False)
        steps = [(x, share) for low, high, share in bins for x in (low, high)]
        frame.line([(edges[0], 0), *steps, (edges[-1], 0)], "reference")
    frame.parts.append(f'<path class="axis" d="M{LEFT} {frame.y(0):.1f}H{frame.width - RIGHT}"/>')
    return frame.svg(f"Histogram: {data['label']}")


def shares(data: dict[str, Any]) -> Markup:
    """Draws two bars, samples and reference, for each space group.

    Args:
        data: from `metrics.json`: `numbers` of the groups, counts `samples` and `reference`, and both sets' `sizes`.
    """
    found = {name: [count / (data["sizes"][name] or 1) for count in data[name]] for name in ("samples", "reference")}
    top = max(*found["samples"], *found["reference"], 1e-3)
    frame = Frame((0, len(data["numbers"]) or 1), (0, 1.05 * top), width=FULL_WIDTH, height=FULL_HEIGHT)
    frame.axes("Space group", percent=True, labels=False)
    for i, number in enumerate(data["numbers"]):
        frame.text(frame.x(i + 0.5), frame.height - BOTTOM + 15, symbol(number), "middle")
        for place, name in ((0.12, "samples"), (0.5, "reference")):
            share, count = found[name][i], data[name][i]
            where = f'x="{frame.x(i + place):.1f}" y="{frame.y(share):.1f}"'
            size = f'width="{0.38 * (frame.x(1) - frame.x(0)):.1f}" height="{frame.y(0) - frame.y(share):.1f}"'
            title = f"{symbol(number)} ({number}): {count} of {data['sizes'][name]} {name}"
            frame.parts.append(f'<rect class="{name}" {where} {size}><title>{escape(title)}</title></rect>')
    return frame.svg("Space groups")


def training_curve(series: dict[str, list[tuple[float, float]]]) -> Markup:
    """Draws losses over steps; the keys `loss` and `val_loss` select the curves' styles."""
    points = [point for line in series.values() for point in line]
    steps, losses = zip(*points, strict=True)
    margin = 0.05 * (max(losses) - min(losses)) or 0.1
    frame = Frame(
        (min(steps), max(steps)),
        (min(losses) - margin, max(losses) + margin),
        width=FULL_WIDTH,
        height=FULL_HEIGHT,
    )
    frame.axes("Training step")
    for name, line in series.items():
        if line:
            frame.line(line, f"curve {name}")
            frame.parts += [
                f'<circle class="{name}" cx="{frame.x(x):.1f}" cy="{frame.y(y):.1f}" r="2.5">'
                f"<title>step {x:g}: {y:.4f}</title></circle>"
                for x, y in (line if len(line) <= 40 else line[-1:])
            ]
    return frame.svg("Training curve")


def _shares(counts: Sequence[int]) -> list[float]:
    total = sum(counts) or 1
    return [count / total for count in counts]
