"""Charts: coordinates of the marks of an inline SVG, which `templates/parts.html` draws."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from matplotlib.ticker import MaxNLocator

WIDTH, HEIGHT = 360, 210  # pixels; phones show a chart unscaled, so that its text is readable
LEFT, RIGHT, TOP, BOTTOM = 50, 12, 10, 34  # margins in pixels
MAX_TICKS = 5
MAX_DECIMALS = 5
ROUNDING = 1e-9
MAX_DOTS = 60  # per line; a line with more points is drawn without dots
MAX_POINTS = 2000  # per scatter chart


class Tick(NamedTuple):
    """Labeled position on an axis."""

    position: float
    text: str


class Mark(NamedTuple):
    """Position, size and tooltip of a dot, whose size is 0, or of a bar."""

    x: float
    y: float
    width: float
    height: float
    text: str


class Line(NamedTuple):
    """Line through points, or only their dots.

    Attributes:
        name: name in the legend.
        path: SVG path; empty for dots without a line.
        dots: a dot for each point; empty if there are more than `MAX_DOTS` points.
        value: text of the last value, or of that at the chart's mark, for the legend.
    """

    name: str
    path: str
    dots: list[Mark]
    value: str


@dataclass(frozen=True, kw_only=True)
class Chart:
    """Chart of lines or bars.

    Attributes:
        title: title above the chart.
        summary: description for screen readers.
        x_label: label of the x axis.
        x_ticks: ticks of the x axis.
        y_ticks: ticks of the y axis.
        lines: lines of a line chart or a scatter chart.
        bars: bars of a histogram.
        mark: labeled vertical line.
    """

    title: str
    summary: str
    x_label: str
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    lines: list[Line] = field(default_factory=list)
    bars: list[Mark] = field(default_factory=list)
    mark: Tick | None = None

    width, height = WIDTH, HEIGHT
    left, right, top, bottom = LEFT, WIDTH - RIGHT, TOP, HEIGHT - BOTTOM


class Axis:
    """Linear mapping from values to positions.

    If `low` and `high` are equal up to rounding, both are moved apart, within the bounds.

    Args:
        low: smallest value.
        high: largest value.
        begin: position of `low`.
        end: position of `high`.
        minimum: lower bound of the values.
        maximum: upper bound of the values.
    """

    def __init__(
        self,
        low: float,
        high: float,
        begin: float,
        end: float,
        *,
        minimum: float = -math.inf,
        maximum: float = math.inf,
    ) -> None:
        if high - low <= ROUNDING * max(abs(low), abs(high)):
            middle, half = (low + high) / 2, 0.5 * (abs(high) or 1)
            low, high = max(minimum, middle - half), min(maximum, middle + half)
        self.low, self.high, self._begin, self._end = low, high, begin, end

    def __call__(self, value: float) -> float:
        """Return the position of a value."""
        share = (value - self.low) / (self.high - self.low)
        return round(self._begin + share * (self._end - self._begin), 2)

    def ticks(self, *, is_share: bool = False, is_whole: bool = False) -> list[Tick]:
        """Return ticks at round values.

        Args:
            is_share: values are shares, and labels are in percent.
            is_whole: values are integers.
        """
        locator = MaxNLocator(MAX_TICKS, integer=is_whole, min_n_ticks=1)
        values = [
            value
            for value in map(float, locator.tick_values(self.low, self.high))
            if self.low <= value <= self.high
        ]
        texts = tick_texts([100 * value for value in values] if is_share else values)
        unit = "%" if is_share else ""
        return [Tick(self(v), f"{text}{unit}") for v, text in zip(values, texts, strict=True)]


def tick_texts(values: Sequence[float]) -> list[str]:
    """Return round numbers as text, all with as many decimals as they need.

    >>> tick_texts([13.9, 13.95, 14.0]), tick_texts([0, 2000]), tick_texts([0, 2e-7])
    (['13.90', '13.95', '14.00'], ['0', '2,000'], ['0', '2e-07'])
    """
    for decimals in range(MAX_DECIMALS + 1):
        if all(math.isclose(round(one, decimals), one, abs_tol=1e-12) for one in values):
            return [f"{one:,.{decimals}f}" for one in values]
    return [f"{one:.3g}" for one in values]


def number_text(value: float, *, is_share: bool = False) -> str:
    """Return a number as short text: about three digits, or the integer part if it is large.

    >>> number_text(1234567.0), number_text(0.25), number_text(0.1234, is_share=True)
    ('1,234,567', '0.25', '12.3%')
    """
    if is_share:
        return f"{value:.1%}".replace(".0%", "%")
    return f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.3g}"


def line_chart(
    title: str,
    series: Mapping[str, Sequence[tuple[float, float | None]]],
    *,
    x_label: str,
    is_share: bool = False,
    is_whole: bool = False,
    from_zero: bool = False,
    mark: tuple[float, str] | None = None,
) -> Chart | None:
    """Return a chart of lines; None if there are no points.

    Args:
        title: title of the chart.
        series: name → points (x, y); points without a finite y are left out.
        x_label: label of the x axis.
        is_share: y is a share, shown in percent.
        is_whole: x is an integer.
        from_zero: start the y axis at 0.
        mark: an x to mark by a line, whose values the legend shows, and its label.
    """
    drawn = {
        name: [(x, y) for x, y in points if y is not None and math.isfinite(y)]
        for name, points in series.items()
    }
    drawn = {name: points for name, points in drawn.items() if points}
    if not drawn:
        return None
    xs = [x for points in drawn.values() for x, _ in points]
    ys = [y for points in drawn.values() for _, y in points] + ([0.0] if from_zero else [])
    x_axis = Axis(min(xs), max(xs), LEFT, WIDTH - RIGHT)
    bounds: dict[str, float] = {"minimum": 0.0, "maximum": 1.0} if is_share else {}
    y_axis = Axis(min(ys), max(ys), HEIGHT - BOTTOM, TOP, **bounds)
    lines = []
    for name, points in drawn.items():
        positions = [(x_axis(x), y_axis(y)) for x, y in points]
        path = "M" + "L".join(f"{x:g} {y:g}" for x, y in positions)
        dots = [
            Mark(*position, 0, 0, f"{name}, {x:g}: {number_text(y, is_share=is_share)}")
            for position, (x, y) in zip(positions, points, strict=True)
        ]
        shown = [y for x, y in points if mark is not None and x == mark[0]] or [points[-1][1]]
        value = number_text(shown[0], is_share=is_share)
        lines.append(Line(name, path, dots if len(dots) <= MAX_DOTS else [], value))
    ends = "; ".join(
        f"{name} from {number_text(points[0][1], is_share=is_share)} to "
        f"{number_text(points[-1][1], is_share=is_share)}"
        for name, points in drawn.items()
    )
    return Chart(
        title=title,
        summary=f"{title}: {ends}",
        x_label=x_label,
        x_ticks=x_axis.ticks(is_whole=is_whole),
        y_ticks=y_axis.ticks(is_share=is_share),
        lines=lines,
        mark=None if mark is None else Tick(x_axis(mark[0]), mark[1]),
    )


def histogram(
    title: str, values: npt.ArrayLike, *, x_label: str, unit: str, num_bins: int = 24
) -> Chart | None:
    """Return a histogram; None if there are no finite values.

    Args:
        title: title of the chart.
        values: values to count; those that are not finite are left out.
        x_label: label of the x axis.
        unit: plural name of what is counted.
        num_bins: number of bars.
    """
    finite = np.asarray(values, dtype=np.float64)
    finite = finite[np.isfinite(finite)]
    if not len(finite):
        return None
    x_axis = Axis(float(finite.min()), float(finite.max()), LEFT, WIDTH - RIGHT)
    if np.ptp(finite) <= ROUNDING * np.abs(finite).max():
        finite = np.full_like(finite, finite[0])
    counts, edges = np.histogram(finite, bins=num_bins, range=(x_axis.low, x_axis.high))
    y_axis = Axis(0.0, float(counts.max()), HEIGHT - BOTTOM, TOP)
    bars = []
    for count, low, high in zip(counts.tolist(), edges[:-1], edges[1:], strict=True):
        text = f"{number_text(low)} to {number_text(high)}: {count:,} {unit}"
        width = max(0.5, x_axis(high) - x_axis(low) - 1)
        bars.append(Mark(x_axis(low), y_axis(count), width, y_axis(0) - y_axis(count), text))
    low, middle, high = np.quantile(finite, [0, 0.5, 1])
    return Chart(
        title=title,
        summary=f"{title} of {len(finite):,} {unit}: {number_text(low)} to {number_text(high)}, "
        f"median {number_text(middle)}",
        x_label=x_label,
        x_ticks=x_axis.ticks(),
        y_ticks=y_axis.ticks(is_whole=True),
        bars=bars,
    )


def scatter_chart(
    title: str, points: Sequence[tuple[float, float]], *, x_label: str, unit: str
) -> Chart | None:
    """Return a chart of points and the line y = x; None if there are no finite points.

    Args:
        title: title of the chart.
        points: points (x, y), those that are not finite are left out; of many, at most `MAX_POINTS`
            evenly spaced ones are drawn.
        x_label: label of the x axis.
        unit: plural name of what a point stands for.
    """
    points = [point for point in points if all(map(math.isfinite, point))]
    if not points:
        return None
    values = [value for point in points for value in point]
    low, high = min(values), max(values)
    x_axis = Axis(low, high, LEFT, WIDTH - RIGHT)
    y_axis = Axis(low, high, HEIGHT - BOTTOM, TOP)
    step = max(1, -(-len(points) // MAX_POINTS))
    dots = [
        Mark(x_axis(x), y_axis(y), 0, 0, f"{number_text(x)}: {number_text(y)}")
        for x, y in points[::step]
    ]
    ends = (x_axis(x_axis.low), y_axis(y_axis.low), x_axis(x_axis.high), y_axis(y_axis.high))
    equal = "M{:g} {:g}L{:g} {:g}".format(*ends)
    return Chart(
        title=title,
        summary=f"{title}: {len(points):,} {unit}, from {number_text(low)} to {number_text(high)}",
        x_label=x_label,
        x_ticks=x_axis.ticks(),
        y_ticks=y_axis.ticks(),
        lines=[Line("", "", dots, ""), Line("equal", equal, [], "")],
    )
