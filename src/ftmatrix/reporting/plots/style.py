"""How every plot looks: colours, markers, and its way into a page or a file."""

import hashlib
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import matplotlib as mpl
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, Locator, LogLocator, MaxNLocator, NullLocator

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
"""Okabe and Ito's, which colour-blind readers tell apart, and which show on white and on black."""
MARKERS = ("o", "s", "^", "D", "v", "P")
"""One an arm, so that a print without colour can be read too."""
LINES = ("-", "--", ":", "-.")
LEGEND_LETTERS = 112
"""That fit side by side below a figure, with seven for each mark."""
MOST_TICKS = 5
"""Of an axis over many decades."""
INK = "#010203"
"""Text and lines. In a page it becomes the page's own colour, light or dark."""
FEW_DECADES, MANY_DECADES = 0.5, 2.5
"""Of a logarithmic axis: up to here ticks stand evenly, and from here on at powers of ten alone."""
LONGEST_NAME = 120
"""Characters of a file's name."""
WIDTH = 9.6
"""Inches, of every figure."""


@dataclass(frozen=True)
class Plot:
    """A figure with its heading and what it shows, in words. `name` is that of its file, without an ending."""

    name: str
    title: str
    caption: str
    figure: Figure

    def save(self, folder: Path) -> Path:
        """Write it as a PNG."""
        path = folder / f"{self.name}.png"
        FigureCanvasAgg(self.figure)
        with _look():
            self.figure.savefig(path, dpi=120)
        return path

    def svg(self) -> str:
        """The figure to be put into a page: its text stays text, in the page's colour, on no ground of its own."""
        file = StringIO()
        with _look(), mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": self.name}):
            self.figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        drawn = file.getvalue()
        drawn = drawn[drawn.index("<svg") :].replace(INK, "currentColor")
        return re.sub(r"<metadata>.*?</metadata>", "", drawn, flags=re.DOTALL)


@contextmanager
def new_figure(rows: int, columns: int, height: float) -> Iterator[tuple[Figure, list[list[Axes]]]]:
    """A figure with its axes, `height` inches high."""
    with _look():
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False)
        for line in axes:
            for one in line:
                one.grid(alpha=0.25)
        yield figure, [list(line) for line in axes]


def _look() -> AbstractContextManager[None]:
    return mpl.rc_context(
        {
            "text.color": INK,
            "axes.labelcolor": INK,
            "axes.edgecolor": INK,
            "axes.titlesize": 10,
            "xtick.color": INK,
            "ytick.color": INK,
            "legend.framealpha": 0.0,
            "font.size": 9,
            "text.parse_math": False,
        }
    )


def log_ticks(axis: Axis, places: Sequence[float] = ()) -> None:
    """Plain figures on a logarithmic axis that is drawn already: at these places, or as many as its range asks for."""
    low, high = axis.get_view_interval()
    decades = math.log10(high / low) if 0 < low < high else 0.0
    if places:
        locator: Locator = FixedLocator(list(places))
    elif decades < FEW_DECADES:
        locator = MaxNLocator(5)
    else:
        locator = LogLocator(subs=(1, 2, 5)) if decades < MANY_DECADES else LogLocator(numticks=MOST_TICKS)
    axis.set_major_locator(locator)
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]


def marker(index: int) -> str:
    """The mark of an arm; with more arms than colours, another one each time that a colour comes again."""
    return MARKERS[(index + index // len(COLOURS)) % len(MARKERS)]


def line_style(index: int) -> str:
    """The line of an arm, another one each time that a colour comes again."""
    return LINES[index // len(COLOURS) % len(LINES)]


def legend_columns(handles: Sequence[Artist]) -> int:
    """Columns of a legend, so that its longest names fit."""
    longest = max(len(str(handle.get_label())) for handle in handles)
    return max(1, min(len(handles), LEGEND_LETTERS // (longest + 7)))


def named(name: str, title: str) -> str:
    """A file's name for a plot of this context. What a name can't spell is told apart by a digest.

    >>> named("rates", "pocket-1m")
    'rates-pocket-1m'
    """
    words = "-".join([name, *re.findall(r"[\w.]+(?:-[\w.]+)*", title)])
    if words == f"{name}-{title}" and len(words) <= LONGEST_NAME:
        return words
    return f"{words[:LONGEST_NAME]}-{hashlib.sha256(title.encode()).hexdigest()[:6]}"
