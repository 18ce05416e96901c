"""Curves with bands as an SVG file, panel beside panel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 420, 300  # of a panel's axes
LEFT, TOP, RIGHT, BOTTOM = 56, 44, 24, 72
# Okabe and Ito's, which colour-blind readers tell apart.
COLOURS = ("#000000", "#0072b2", "#009e73", "#e69f00", "#d55e00", "#cc79a7")
NUM_TICKS = 4


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Points by x, each with its lowest, mean and highest y."""

    label: str
    points: Mapping[float, tuple[float, float, float]]


@dataclass(frozen=True, kw_only=True)
class Panel:
    """Curves on common axes; those at the same place in other panels have the same colour."""

    title: str
    curves: Sequence[Curve]


def draw(path: Path, panels: Sequence[Panel], *, x_label: str, y_label: str, caption: str) -> None:
    """Write the panels side by side, all with the same scales, and what they are below."""
    points = [
        (x, y)
        for panel in panels
        for curve in panel.curves
        for x, ys in curve.points.items()
        for y in ys
    ]
    scale = _Scale(
        x_range=(min(x for x, _ in points), max(x for x, _ in points)),
        y_range=(0.0, max(y for _, y in points)),
    )
    step = LEFT + WIDTH + RIGHT
    width, height = step * len(panels), TOP + HEIGHT + BOTTOM
    body = "\n".join(
        f'<g transform="translate({number * step + LEFT},{TOP})">\n'
        f"{_panel(panel, scale, x_label=x_label, y_label=y_label)}\n</g>"
        for number, panel in enumerate(panels)
    )
    caption_text = _text(caption, width / 2, height - 10, anchor="middle", size=11)
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" font-family="sans-serif">\n'
        f'<rect width="{width}" height="{height}" fill="white"/>\n{body}\n{caption_text}\n</svg>\n',
        encoding="utf-8",
    )


@dataclass(frozen=True, kw_only=True)
class _Scale:
    x_range: tuple[float, float]
    y_range: tuple[float, float]

    def at(self, x: float, y: float) -> tuple[float, float]:
        return _share(x, self.x_range) * WIDTH, (1 - _share(y, self.y_range)) * HEIGHT


def _share(value: float, within: tuple[float, float]) -> float:
    low, high = within
    return (value - low) / ((high - low) or 1.0)


def _panel(panel: Panel, scale: _Scale, *, x_label: str, y_label: str) -> str:
    parts = [
        _text(panel.title, WIDTH / 2, -16, anchor="middle", size=14),
        _text(x_label, WIDTH / 2, HEIGHT + 36, anchor="middle"),
        f'<g transform="translate(-42,{HEIGHT / 2}) rotate(-90)">'
        f"{_text(y_label, 0, 0, anchor='middle')}</g>",
    ]
    for tick in range(NUM_TICKS + 1):
        x, y = (low + (high - low) * tick / NUM_TICKS for low, high in _ranges(scale))
        at_x, at_y = scale.at(x, y)
        parts += [
            _line([(at_x, 0), (at_x, HEIGHT)], "#dddddd", 1),
            _line([(0, at_y), (WIDTH, at_y)], "#dddddd", 1),
            _text(f"{x:g}", at_x, HEIGHT + 16, anchor="middle", size=11),
            _text(f"{y:.2g}", -6, at_y + 4, anchor="end", size=11),
        ]
    for number, curve in enumerate(panel.curves):
        parts += _curve(curve, scale, COLOURS[number % len(COLOURS)])
        at = HEIGHT - 14 * (len(panel.curves) - number)
        parts += [
            _line([(WIDTH - 110, at), (WIDTH - 88, at)], COLOURS[number % len(COLOURS)], 2),
            _text(curve.label, WIDTH - 82, at + 4, size=11),
        ]
    return "\n".join(parts)


def _ranges(scale: _Scale) -> tuple[tuple[float, float], tuple[float, float]]:
    return scale.x_range, scale.y_range


def _curve(curve: Curve, scale: _Scale, colour: str) -> list[str]:
    low, mean, high = (
        [scale.at(x, ys[which]) for x, ys in sorted(curve.points.items())] for which in range(3)
    )
    band = " ".join(f"{x:.1f},{y:.1f}" for x, y in [*low, *reversed(high)])
    return [f'<polygon points="{band}" fill="{colour}" opacity="0.12"/>', _line(mean, colour, 2)]


def _line(points: Sequence[tuple[float, float]], colour: str, width: float) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width}"/>'


def _text(text: str, x: float, y: float, *, anchor: str = "start", size: int = 12) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" fill="#222222">'
        f"{escape(text)}</text>"
    )
