"""The report's page as a browser shows it."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import Page, browsing, found
from test_report import PLOTS, curve, made_up, results

from ftmatrix.reporting.details import read_details
from ftmatrix.reporting.writing import write_report

PROGRAM = found()
pytestmark = pytest.mark.skipif(
    PROGRAM is None and "FTMATRIX_NEEDS_BROWSER" not in os.environ, reason="no Chromium on this machine"
)
READABLE = 4.5
"""Least contrast of text, by WCAG 2.2 (1.4.3)."""
CONTRASTS = """
(() => {
  const channel = (value) => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
  const light = (colour) => {
    const [r, g, b] = colour.match(/[\\d.]+/g).slice(0, 3).map((value) => channel(value / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = light(getComputedStyle(document.body).backgroundColor);
  const least = (selector, property) => Math.min(...[...document.querySelectorAll(selector)].map((element) => {
    const [low, high] = [ground, light(getComputedStyle(element)[property])].sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
  }));
  return {ground, words: least("h1, h2, h3, p, li, td, th, .answer", "color"), drawn: least("svg text", "fill")};
})()
"""


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    assert PROGRAM is not None, "FTMATRIX_NEEDS_BROWSER is set, and there is no Chromium"
    with browsing(PROGRAM) as page:
        yield page


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    summary = made_up(folder)
    return write_report(summary, read_details(summary, results, curve), folder)[0]


def test_all_of_it_is_there_and_nothing_is_fetched(page: Page, file: Path) -> None:
    page.requested.clear()
    page.open(file)
    assert [address for address in page.requested if not address.startswith("data:")] == [file.as_uri()]
    text = page.value("document.body.innerText")
    for said in ("In short", "Full fine-tuning is stable at 5e-5.", "supported", "memory | ran *out* <b>here</b>"):
        assert said in text
    plots: list[dict[str, Any]] = page.value(
        "[...document.querySelectorAll('svg')].map((svg) => { const box = svg.getBoundingClientRect();"
        " return {width: box.width, height: box.height, shapes: svg.querySelectorAll('path, use, image').length}; })"
    )
    assert len(plots) == len(PLOTS)
    assert all(plot["width"] > 300 and plot["height"] > 150 and plot["shapes"] > 20 for plot in plots)
    rows = page.value("[...document.querySelectorAll('table')].map((table) => table.tBodies[0].rows.length)")
    assert len(rows) >= 5
    assert all(rows)


def test_its_links_lead_to_its_parts(page: Page, file: Path) -> None:
    page.open(file)
    assert page.value("document.links.length") > 5
    assert page.value("[...document.links].every((a) => document.getElementById(decodeURI(a.hash.slice(1))))")


@pytest.mark.parametrize(("scheme", "dark"), [("light", False), ("dark", True)])
def test_text_can_be_read_in_both_colour_schemes(page: Page, file: Path, scheme: str, dark: bool) -> None:
    page.open(file, prefers_color_scheme=scheme)
    found = page.value(CONTRASTS)
    assert (found["ground"] < 0.05) is dark
    assert found["words"] > READABLE
    assert found["drawn"] > READABLE


def test_a_print_loses_no_column(page: Page, file: Path) -> None:
    page.call("Emulation.setDeviceMetricsOverride", width=718, height=1000, deviceScaleFactor=1, mobile=False)  # A4
    page.open(file)
    page.call("Emulation.setEmulatedMedia", media="print")
    edges = page.value("[...document.querySelectorAll('table')].map((table) => table.getBoundingClientRect().right)")
    page.call("Emulation.setEmulatedMedia", media="")
    page.call("Emulation.clearDeviceMetricsOverride")
    assert max(edges) <= 718


@pytest.mark.parametrize("width", [400, 1300])
def test_it_is_never_wider_than_the_window(page: Page, file: Path, width: int) -> None:
    page.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
    page.open(file)
    shown = page.value("document.documentElement.scrollWidth")
    page.call("Emulation.clearDeviceMetricsOverride")
    assert shown <= width
