"""Tests charts by parsing their SVG."""

import itertools
import re
from xml.etree import ElementTree as ET

import pytest

from infra.drills.charts import LEFT, PLOT_HEIGHT, PLOT_WIDTH, Band, Mark, Panel, Series, chart

SVG = "{http://www.w3.org/2000/svg}"


def series(*points: tuple[float, float], drawn_as: str = "dots", label: str | None = "acknowledged") -> Series:
    return Series(label=label, colour="#0b5cad", points=points, drawn_as=drawn_as)  # pyright: ignore[reportArgumentType] - parameters of tests are of type str


def drawn(text: str) -> ET.Element:
    return ET.fromstring(text)  # noqa: S314 - our own


def of_class(svg: ET.Element, name: str) -> list[ET.Element]:
    return [element for element in svg.iter() if element.get("class") == name]


def texts(svg: ET.Element, name: str) -> list[str]:
    return ["".join(element.itertext()) for element in of_class(svg, name)]


def frame(svg: ET.Element, number: int = 0) -> tuple[float, float]:
    """The upper and the lower edge of a panel."""
    outline = next(one for one in of_class(svg, "panel")[number].iter(f"{SVG}rect") if one.get("fill") == "none")
    top = float(outline.get("y", ""))
    return top, top + float(outline.get("height", ""))


def moves(path: ET.Element) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"[ML]([\d.]+) ([\d.]+)", path.get("d", ""))]


def test_a_dot_is_at_its_time_and_value() -> None:
    svg = drawn(chart([Panel(label="ms", series=[series((0, 0), (5, 10), (10, 20))])], end=10))
    top, bottom = frame(svg)
    first, middle, last = moves(of_class(svg, "dots")[0])
    assert first == (LEFT, bottom)
    assert middle[0] == LEFT + PLOT_WIDTH / 2
    assert last[0] == LEFT + PLOT_WIDTH
    assert bottom - middle[1] == pytest.approx((bottom - last[1]) / 2, abs=0.1)
    assert top < last[1] < top + 0.1 * PLOT_HEIGHT, "the highest value is just below the upper edge"


def test_a_logarithmic_panel_shows_whole_decades() -> None:
    points = [(1.0, 0.0), (2.0, 3.0), (3.0, 100.0), (4.0, 2000.0)]
    svg = drawn(chart([Panel(label="ms", series=[series(*points)], logarithmic=True)], end=5))
    top, bottom = frame(svg)
    zero, _, hundred, _ = moves(of_class(svg, "dots")[0])
    assert texts(of_class(svg, "panel")[0], "tick") == ["1", "10", "100", "1000", "10000"]
    assert zero[1] == bottom, "zero has no logarithm, so it is at the edge"
    assert hundred[1] == pytest.approx((top + bottom) / 2, abs=0.1)


def test_steps_keep_each_value_until_the_next_point() -> None:
    svg = drawn(chart([Panel(label="rate", series=[series((0, 1), (1, 4), (2, 2), drawn_as="steps")])], end=2))
    assert re.fullmatch(r"M[\d.]+ [\d.]+(H[\d.]+V[\d.]+){2}", of_class(svg, "steps")[0].get("d", ""))


def test_bands_and_marks_are_in_every_panel_and_labels_once() -> None:
    panels = [Panel(label="one", series=[series((1, 1), drawn_as="line")]), Panel(label="two", series=[])]
    bands = [Band(since=0, until=4, colour="#d5ead8"), Band(since=4, until=10, colour="#fbd9c5")]
    svg = drawn(chart(panels, end=10, bands=bands, marks=[Mark(at=4, label="kill east/<etcd> & more")]))
    for panel in of_class(svg, "panel"):
        first, second = of_class(panel, "band")
        assert float(second.get("x", "")) == float(first.get("x", "")) + float(first.get("width", ""))
        assert (first.get("fill"), second.get("fill")) == ("#d5ead8", "#fbd9c5")
        assert len([one for one in of_class(panel, "mark") if one.tag == f"{SVG}path"]) == 1
    assert texts(svg, "mark") == ["", "", "kill east/<etcd> & more"]
    assert texts(svg, "axis") == ["one", "two", "seconds"]


def test_a_legend_has_the_labelled_series() -> None:
    panel = Panel(label="phi", series=[series((0, 1), label="east"), series((0, 1), label=None)])
    assert texts(drawn(chart([panel], end=1)), "legend") == ["● east"]


@pytest.mark.parametrize("end", [0.1, 1.0, 7.3, 30.0, 61.0, 3600.0])
def test_a_time_axis_has_3_to_7_round_ticks(end: float) -> None:
    svg = drawn(chart([Panel(label="none", series=[])], end=end))
    in_panel = len(texts(of_class(svg, "panel")[0], "tick"))
    ticks = [float(text) for text in texts(svg, "tick")[in_panel:]]
    assert 3 <= len(ticks) <= 7
    assert ticks[0] == 0
    assert ticks[-1] <= end
    steps = {round(later - earlier, 6) for earlier, later in itertools.pairwise(ticks)}
    assert len(steps) == 1
    assert f"{steps.pop():e}"[:3] in {"1.0", "2.0", "5.0"}


def test_a_long_label_at_the_end_fits() -> None:
    label = "cut ap-south from eu-central, us-east and whatever else there is"
    svg = drawn(chart([Panel(label="none", series=[])], end=10, marks=[Mark(at=10, label=label)]))
    _, _, width, _ = (float(number) for number in svg.get("viewBox", "").split())
    text = next(one for one in of_class(svg, "mark") if one.tag == f"{SVG}text")
    assert float(text.get("x", "")) + 4 * len(label) < width
    assert float(text.get("y", "")) > 2 * len(label)
