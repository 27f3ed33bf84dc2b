"""A line in a picture: SVG, without a library."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

__all__ = ["line_plot"]

_WIDTH, _HEIGHT = 720, 320
_FONT = 'font-family="sans-serif" font-size="12"'
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 40, 48


def line_plot(points: Sequence[tuple[float, float]], title: str, x_name: str, y_name: str) -> str:
    """Return the picture of a line; both axes begin at 0.

    Args:
        points: x and y, in the order of x; at least one.
        title: Above the picture.
        x_name: What x is.
        y_name: What y is.
    """
    top_x, top_y = max(x for x, _ in points), max(y for _, y in points) * 1.15

    def at(x: float, y: float) -> tuple[float, float]:
        return (
            _LEFT + x / top_x * (_WIDTH - _LEFT - _RIGHT),
            _HEIGHT - _BOTTOM - y / top_y * (_HEIGHT - _TOP - _BOTTOM),
        )

    line = " ".join(f"{left:.1f},{down:.1f}" for left, down in (at(x, y) for x, y in points))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" {_FONT}>',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        f'<text x="{_LEFT}" y="24" font-size="14">{escape(title)}</text>',
    ]
    for y in _ticks(top_y):
        left, down = at(0, y)
        parts.append(f'<line x1="{left}" y1="{down:.1f}" x2="{_WIDTH - _RIGHT}" y2="{down:.1f}" stroke="#dddddd"/>')
        parts.append(f'<text x="{left - 8}" y="{down + 4:.1f}" text-anchor="end">{y:g}</text>')
    for x in _ticks(top_x):
        left, down = at(x, 0)
        parts.append(f'<text x="{left:.1f}" y="{down + 18:.1f}" text-anchor="middle">{x:,.0f}</text>')
    parts += [
        f'<text x="{_WIDTH / 2}" y="{_HEIGHT - 8}" text-anchor="middle">{escape(x_name)}</text>',
        f'<text transform="translate(16 {_HEIGHT / 2}) rotate(-90)" text-anchor="middle">{escape(y_name)}</text>',
        f'<polyline points="{line}" fill="none" stroke="#1f6feb" stroke-width="2"/>',
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _ticks(top: float) -> Iterator[float]:
    """Yield about five round numbers from 0 to the top."""
    rough = top / 5
    power = 10 ** (len(str(int(rough))) - 1) if rough >= 1 else 0.1
    step = next(step for step in (power, 2 * power, 5 * power, 10 * power) if step >= rough)
    value = 0.0
    while value <= top:
        yield value
        value += step
