"""The picture of a run: how far ahead of the best rival, and how near to the machine's own limit."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

from infer_accel._files import replace_file
from infer_accel.bench.report import format_value

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from matplotlib.axes import Axes

    from infer_accel.bench.rows import Row

__all__ = ["plot_rows"]

#: Okabe and Ito's palette: told apart with any kind of colour vision.
_COLOURS = ("#0072B2", "#009E73", "#D55E00", "#CC79A7")
_BEHIND = "#9a9a9a"
_INK = "#222222"
_FAINT = "#8a8a8a"


def plot_rows(path: str | os.PathLike[str], rows: Sequence[Row], subtitle: str) -> None:
    """Draw the rows as two columns of bars, the ratio and the share of the limit, and write a PNG.

    Parameters
    ----------
    path
        The picture; written whole or not at all.
    rows
        What to draw, one line a row, grouped by part.
    subtitle
        One line that says where and when: machine, threads, version.

    Raises
    ------
    ImportError
        matplotlib is not installed (it comes with the extra `bench`).
    OSError
        The picture cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    places = _places(rows)
    height = 1.7 + 0.34 * (max(places) + 1 if places else 1)
    figure = Figure(figsize=(14, height), facecolor="white")
    FigureCanvasAgg(figure)
    top = 1 - 1.0 / height
    bottom = 0.55 / height
    left = figure.add_axes((0.29, bottom, 0.48, top - bottom))
    right = figure.add_axes((0.80, bottom, 0.18, top - bottom), sharey=left)
    _draw_ratios(left, rows, places)
    _draw_shares(right, rows, places)
    _draw_names(left, rows, places)
    figure.text(
        0.015, 1 - 0.36 / height, "infer-accel beside the best rival", size=15, weight="bold", color=_INK
    )
    figure.text(0.015, 1 - 0.62 / height, subtitle, size=8.5, color=_FAINT)
    with replace_file(path) as beside:
        figure.savefig(beside, format="png", dpi=160)


def _places(rows: Sequence[Row]) -> list[float]:
    """Return the height of each row's line: a gap and a heading before each part."""
    places: list[float] = []
    at = 0.0
    for _, group in groupby(rows, key=lambda row: row.part):
        at += 1.0
        for _ in group:
            places.append(at)
            at += 1.0
        at += 0.35
    return places


def _colours(rows: Sequence[Row]) -> dict[str, str]:
    parts = list(dict.fromkeys(row.part for row in rows))
    return {part: _COLOURS[index % len(_COLOURS)] for index, part in enumerate(parts)}


def _draw_ratios(axes: Axes, rows: Sequence[Row], places: Sequence[float]) -> None:
    colours = _colours(rows)
    ratios = [row.ratio for row in rows if row.ratio is not None]
    low, high = min([0.8, *ratios]) * 0.85, max([2.0, *ratios])
    axes.set_xscale("log")
    axes.set_xlim(low, high * (high / low) ** 0.85)  # room for the words at the end of the longest bar
    for row, place in zip(rows, places, strict=True):
        ratio = row.ratio
        if ratio is None:
            axes.text(1.0, place, "  no rival took part", va="center", size=8, color=_FAINT)
            continue
        colour = colours[row.part] if ratio >= 1 else _BEHIND
        axes.barh(place, ratio - 1, left=1.0, height=0.62, color=colour)
        name, value = row.ranked_peers()[0]
        axes.text(
            max(ratio, 1.0),
            place,
            f"  ×{format_value(ratio)}",
            va="center",
            size=9,
            weight="bold",
            color=_INK,
        )
        axes.annotate(
            f"{format_value(row.ours)} against {name} {format_value(value)} {row.unit}",
            (max(ratio, 1.0), place),
            xytext=(46, 0),
            textcoords="offset points",
            va="center",
            size=7.5,
            color=_FAINT,
        )
    axes.axvline(1.0, color=_INK, linewidth=0.9)
    _bare(axes)
    axes.set_title("times the best rival (log scale)", size=9, color=_FAINT, loc="left")
    ticks = [
        tick
        for tick in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
        if low <= tick <= high * 1.2
    ]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks], size=8, color=_FAINT)
    axes.minorticks_off()


def _draw_shares(axes: Axes, rows: Sequence[Row], places: Sequence[float]) -> None:
    colours = _colours(rows)
    for row, place in zip(rows, places, strict=True):
        if row.efficiency is None:
            continue
        axes.barh(place, 1.0, height=0.62, color="#efefef")
        axes.barh(place, min(row.efficiency, 1.0), height=0.62, color=colours[row.part], alpha=0.75)
        inside = row.efficiency >= 0.3
        axes.text(
            min(row.efficiency, 1.0) + (-0.02 if inside else 0.02),
            place,
            f"{row.efficiency:.0%}",
            va="center",
            ha="right" if inside else "left",
            size=8.5,
            weight="bold",
            color="white" if inside else _INK,
        )
    axes.set_xlim(0, 1)
    _bare(axes)
    axes.set_title("share of the machine's limit", size=9, color=_FAINT, loc="left")
    axes.set_xticks([0, 0.5, 1], ["0", "50 %", "100 %"], size=8, color=_FAINT)


def _draw_names(axes: Axes, rows: Sequence[Row], places: Sequence[float]) -> None:
    colours = _colours(rows)
    axes.set_yticks(list(places), [row.case for row in rows], size=9, color=_INK)
    axes.tick_params(axis="y", length=0, labelleft=True)
    axes.set_ylim((max(places) if places else 0) + 0.6, -0.3)
    headed: set[str] = set()
    for row, place in zip(rows, places, strict=True):
        if row.part not in headed:
            headed.add(row.part)
            axes.annotate(
                row.part,
                (0, place - 0.85),
                xycoords=("axes fraction", "data"),
                xytext=(-6, 0),
                textcoords="offset points",
                ha="right",
                va="center",
                size=10.5,
                weight="bold",
                color=colours[row.part],
            )


def _bare(axes: Axes) -> None:
    """Take away what carries no information."""
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color("#cccccc")
    axes.tick_params(axis="y", length=0, labelleft=False)
    axes.tick_params(axis="x", color="#cccccc")
