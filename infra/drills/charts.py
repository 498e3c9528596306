"""Draws charts as SVG: panels one above another, with a common time axis in seconds.

Decides scales, ticks and SVG elements. Does not know what the series mean (`report.py`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal
from xml.sax.saxutils import escape, quoteattr

PLOT_WIDTH = 1080
PLOT_HEIGHT = 190
LEFT = 76
GAP = 22
BOTTOM = 48
MARGIN = 20
FONT_PX = 11
CHARACTER_PX = 0.6 * FONT_PX
"""An upper estimate of a character's width; it sets the space that a label gets."""
MARK_DEGREES = 30
TICKS_WANTED = 6
LEGEND_ROW_PX = 15

Point = tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """A series of points in one colour.

    Attributes:
        label: Text in the legend; None leaves the series out of the legend.
        colour: A CSS colour.
        points: (seconds, value), in order of time.
        drawn_as: `line` connects the points; `steps` keeps each value up to the next point; `dots` are not connected.
    """

    label: str | None
    colour: str
    points: Sequence[Point]
    drawn_as: Literal["line", "steps", "dots"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One plot: the label of its vertical axis, and its series. A logarithmic scale shows whole decades."""

    label: str
    series: Sequence[Series]
    logarithmic: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Band:
    """A time span that has a background colour in every panel."""

    since: float
    until: float
    colour: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A moment: a dashed line in every panel, and a label above the first."""

    at: float
    label: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scale:
    """The range of values of a panel, from its lower to its upper edge."""

    bottom: float
    top: float
    logarithmic: bool

    def share(self, value: float) -> float:
        """Return the height of a value, from 0 (lower edge) to 1 (upper edge); values outside are clamped."""
        value = min(max(value, self.bottom), self.top)
        if self.logarithmic:
            return math.log10(value / self.bottom) / math.log10(self.top / self.bottom)
        return (value - self.bottom) / (self.top - self.bottom)

    def ticks(self) -> list[float]:
        """Return the decades, or multiples of 1, 2 or 5 times a power of ten."""
        if self.logarithmic:
            lowest, highest = round(math.log10(self.bottom)), round(math.log10(self.top))
            return [10.0**power for power in range(lowest, highest + 1)]
        return _round_values(self.bottom, self.top)


def chart(panels: Sequence[Panel], *, end: float, bands: Sequence[Band] = (), marks: Sequence[Mark] = ()) -> str:
    """Return an SVG element; the time axis runs from 0 to `end` seconds."""
    assert panels, "a chart needs a panel"
    assert end > 0, "the time axis needs a positive end"
    slope = math.radians(MARK_DEGREES)
    lengths = [len(mark.label) * CHARACTER_PX for mark in marks]
    above = MARGIN + max((length * math.sin(slope) for length in lengths), default=0.0)
    reach = [_x(mark.at, end) + length * math.cos(slope) for mark, length in zip(marks, lengths, strict=True)]
    width = max([LEFT + PLOT_WIDTH, *reach]) + MARGIN
    height = above + len(panels) * (PLOT_HEIGHT + GAP) - GAP + BOTTOM
    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" role="img" '
            f'font-family="system-ui, sans-serif" font-size="{FONT_PX}">'
        )
    ]
    for number, panel in enumerate(panels):
        parts += _panel(panel, above + number * (PLOT_HEIGHT + GAP), end, bands, marks)
    parts += _time_axis(height - BOTTOM, end)
    for mark in marks:
        x, y = _x(mark.at, end), above - 4
        turned = f"rotate({-MARK_DEGREES} {x:.1f} {y:.1f})"
        parts.append(f'<text class="mark" x="{x:.1f}" y="{y:.1f}" transform="{turned}">{escape(mark.label)}</text>')
    return "\n".join([*parts, "</svg>"])


def _panel(panel: Panel, top: float, end: float, bands: Sequence[Band], marks: Sequence[Mark]) -> Iterator[str]:
    scale, bottom = _scale_of(panel), top + PLOT_HEIGHT
    yield f'<g class="panel" aria-label={quoteattr(panel.label)}>'
    for band in bands:
        since, until = _x(band.since, end), _x(band.until, end)
        yield (
            f'<rect class="band" x="{since:.1f}" y="{top:.1f}" width="{max(until - since, 0.0):.1f}"'
            f' height="{PLOT_HEIGHT}" fill={quoteattr(band.colour)} fill-opacity="0.6"/>'
        )
    for tick in scale.ticks():
        y = bottom - scale.share(tick) * PLOT_HEIGHT
        yield f'<path d="M{LEFT - 4} {y:.1f}h4" stroke="#1b1f24"/>'
        yield f'<text class="tick" x="{LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>'
    middle = top + PLOT_HEIGHT / 2
    yield (
        f'<text class="axis" x="{MARGIN}" y="{middle:.1f}" text-anchor="middle"'
        f' transform="rotate(-90 {MARGIN} {middle:.1f})">{escape(panel.label)}</text>'
    )
    for mark in marks:
        x = _x(mark.at, end)
        yield f'<path class="mark" d="M{x:.1f} {top:.1f}V{bottom:.1f}" stroke="#b3261e" stroke-dasharray="4 3"/>'
    for series in panel.series:
        yield _drawn(series, scale, bottom, end)
    yield f'<rect x="{LEFT}" y="{top:.1f}" width="{PLOT_WIDTH}" height="{PLOT_HEIGHT}" fill="none" stroke="#1b1f24"/>'
    yield from _legend([one for one in panel.series if one.label is not None], top)
    yield "</g>"


def _drawn(series: Series, scale: _Scale, bottom: float, end: float) -> str:
    places = [(_x(at, end), bottom - scale.share(value) * PLOT_HEIGHT) for at, value in series.points]
    colour = quoteattr(series.colour)
    match series.drawn_as:
        case "dots":
            path = "".join(f"M{x:.1f} {y:.1f}h0" for x, y in places)
            style = 'stroke-width="2.5" stroke-linecap="round"'
        case "steps":
            path = "".join(
                f"H{x:.1f}V{y:.1f}" if number else f"M{x:.1f} {y:.1f}" for number, (x, y) in enumerate(places)
            )
            style = 'stroke-width="1"'
        case "line":
            path = "".join(f"{'L' if number else 'M'}{x:.1f} {y:.1f}" for number, (x, y) in enumerate(places))
            style = 'stroke-width="1"'
    label = quoteattr(series.label or "")
    return f'<path class="{series.drawn_as}" aria-label={label} d="{path}" fill="none" stroke={colour} {style}/>'


def _legend(series: Sequence[Series], top: float) -> Iterator[str]:
    right = LEFT + PLOT_WIDTH - 8
    for number, one in enumerate(series):
        y = top + (number + 1) * LEGEND_ROW_PX
        yield (
            f'<text class="legend" x="{right}" y="{y:.1f}" text-anchor="end"><tspan fill={quoteattr(one.colour)}>●'
            f"</tspan> {escape(one.label or '')}</text>"
        )


def _time_axis(bottom: float, end: float) -> Iterator[str]:
    for tick in _round_values(0.0, end):
        x = _x(tick, end)
        yield f'<path d="M{x:.1f} {bottom:.1f}v4" stroke="#1b1f24"/>'
        yield f'<text class="tick" x="{x:.1f}" y="{bottom + 16:.1f}" text-anchor="middle">{tick:g}</text>'
    yield f'<text class="axis" x="{LEFT + PLOT_WIDTH / 2}" y="{bottom + 36:.1f}" text-anchor="middle">seconds</text>'


def _scale_of(panel: Panel) -> _Scale:
    values = [value for series in panel.series for _, value in series.points]
    if not panel.logarithmic:
        top = max(values, default=0.0)
        return _Scale(bottom=0.0, top=1.05 * top if top > 0 else 1.0, logarithmic=False)
    positive = [value for value in values if value > 0] or [1.0]
    lowest, highest = math.floor(math.log10(min(positive))), math.ceil(math.log10(max(positive)))
    return _Scale(bottom=10.0**lowest, top=10.0 ** max(highest, lowest + 1), logarithmic=True)


def _round_values(bottom: float, top: float) -> list[float]:
    """Return the multiples of a round step between two values, at most `TICKS_WANTED` + 1."""
    power = 10.0 ** math.floor(math.log10((top - bottom) / TICKS_WANTED))
    step = next(step for step in (power, 2 * power, 5 * power, 10 * power) if (top - bottom) / step <= TICKS_WANTED)
    return [number * step for number in range(math.ceil(bottom / step), math.floor(top / step) + 1)]


def _x(at: float, end: float) -> float:
    return LEFT + min(max(at / end, 0.0), 1.0) * PLOT_WIDTH
