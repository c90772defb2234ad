"""Charts: a mark for each value, axes of round numbers, and summaries."""

from vtnpipe.pipelines.html.plots import MAX_DOTS, MAX_POINTS, histogram, line_chart, scatter_chart


def test_charts_have_a_mark_for_each_value() -> None:
    chart = line_chart("x", {"a": [(1, 0.5), (2, None), (3, 0.75)]}, x_label="s", is_share=True)
    assert chart is not None
    assert [dot.text for dot in chart.lines[0].dots] == ["a, 1: 50%", "a, 3: 75%"]
    assert chart.summary == "x: a from 50% to 75%"
    assert line_chart("x", {"a": [(1, None)]}, x_label="s") is None
    bars = histogram("h", [1.0, 1.0, 2.0, float("nan")], x_label="s", unit="videos", num_bins=4)
    assert bars is not None
    assert [bar.text.split(": ")[1] for bar in bars.bars] == [
        *("2 videos", "0 videos", "0 videos", "1 videos")
    ]
    assert histogram("h", [], x_label="s", unit="videos") is None


def test_values_that_differ_by_rounding_are_one_bar() -> None:
    chart = histogram("h", [0.3, 0.1 + 0.2, 0.3], x_label="s", unit="videos")
    assert chart is not None
    assert [bar.text.split(": ")[1] for bar in chart.bars if "0 videos" not in bar.text] == [
        "3 videos"
    ]


def test_the_axes_of_a_single_value_have_ticks() -> None:
    one = line_chart("x", {"a": [(1, 1.0)]}, x_label="epoch", is_share=True, is_whole=True)
    assert one is not None
    assert [tick.text for tick in one.x_ticks] == ["1"]
    assert all(float(tick.text.rstrip("%")) <= 100 for tick in one.y_ticks)


def test_long_lines_have_no_dots() -> None:
    points = [(float(n), float(n % 7)) for n in range(MAX_DOTS + 1)]
    chart = line_chart("x", {"a": points, "b": points[:2]}, x_label="s", from_zero=True)
    assert chart is not None
    assert [len(line.dots) for line in chart.lines] == [0, 2]
    assert chart.lines[0].path.count("L") == MAX_DOTS


def test_scatter_charts_draw_finite_points_and_the_diagonal() -> None:
    assert scatter_chart("s", [(1.0, float("nan"))], x_label="label", unit="videos") is None
    points = [(float(n), float(n + 1)) for n in range(MAX_POINTS + 10)]
    chart = scatter_chart("s", points, x_label="label", unit="videos")
    assert chart is not None
    dots, diagonal = chart.lines
    assert len(dots.dots) == len(points[::2])
    assert diagonal.name == "equal"
    assert chart.summary.startswith(f"s: {len(points):,} videos, from 0 to ")
