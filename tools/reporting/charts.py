"""Charts as SVG text: lines, heat maps and bars, drawn at the width of a phone.

Colours are classes (``ink``, ``soft``, ``grid``, ``s0`` to ``s5``), so that a page sets them for light and for dark;
``standalone`` makes a file of its own of a chart. Every mark has a ``<title>`` that browsers show under the pointer.
"""

import math
from dataclasses import dataclass
from html import escape

WIDTH = 344  # pixels: fits a phone without scaling
_SIZE = 11  # of the text, in pixels
_LETTER, _BOLD = 7.0, 7.6  # mean width of a letter of that size in a wide font, such as DejaVu Sans
_CELL = 30, 20  # width and height of a cell of a heat map

# Okabe and Ito's colours: told apart without red or green.
COLORS = {"light": ("#0072b2", "#d55e00", "#5b6472", "#009e73", "#b0568c", "#b07d00"),
          "dark": ("#56b4e9", "#f28e4b", "#a9b2c0", "#2fc99a", "#e29ac4", "#f0c24b")}
_INK = {"light": ("#1d2433", "#5b6472", "#d8dde6"), "dark": ("#e8ecf3", "#a9b2c0", "#3a4352")}
_SEQUENTIAL = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))  # viridis
_DIVERGING = ((33, 102, 172), (146, 197, 222), (240, 240, 236), (244, 165, 130), (178, 24, 43))
MISSING = (150, 156, 166)


def style(scheme, prefix=""):
    """The CSS rules of the classes in a colour scheme, light or dark; ``prefix`` stands before every selector."""
    ink, soft, grid = _INK[scheme]
    rules = {".ink": f"fill:{ink}", ".soft": f"fill:{soft}", ".grid": f"stroke:{grid}", ".axis": f"stroke:{soft}"}
    for index, color in enumerate(COLORS[scheme]):
        rules[f".s{index}"] = f"stroke:{color}"
        rules[f".f{index}"] = f"fill:{color}"
    return "".join(f"{prefix}{name}{{{rule}}}" for name, rule in rules.items())


FONT = f"font-family:system-ui,-apple-system,'Segoe UI',Roboto,'Liberation Sans',sans-serif;font-size:{_SIZE}px"


def standalone(svg):
    """The chart as a file of its own, in the light colours on no background."""
    head, _, rest = svg.partition(">")
    return (f'<?xml version="1.0" encoding="UTF-8"?>\n{head} xmlns="http://www.w3.org/2000/svg">'
            f"<style>text{{{FONT}}}{style('light')}</style>{rest}\n")


@dataclass
class Series:
    """A line: its name, its points (x, y; y may be None, which is a gap) and its colour's number."""

    name: str
    points: list
    color: int
    dashed: bool = False
    marks: bool = True


def line_chart(title, series, x_label="", y_label="", x_ticks=None, rules=(), from_zero=False, digits=2, height=220,
               x_names="", x_range=None, width=WIDTH):
    """Lines with their names at their ends.

    ``x_ticks``: positions that get a number (default: round ones); ``x_range`` (low, high): what the axis shows at
    least; ``rules``: (x, text) of vertical lines; ``x_names``
    is said before x under the pointer, as in "round".
    """
    points = [(x, y) for line in series for x, y in line.points if y is not None]
    if not points:
        return None
    xs, ys = [x for x, _ in points] + list(x_range or ()), [y for _, y in points]
    low, high = _range(ys, from_zero)
    y_ticks = ticks(low, high)
    low, high = min(low, y_ticks[0]), max(high, y_ticks[-1])
    step = y_ticks[1] - y_ticks[0] if len(y_ticks) > 1 else 1
    left = 14 + _LETTER * max(len(_number(tick, step)) for tick in y_ticks)
    right = 10 + _BOLD * max(len(line.name) for line in series)
    box = _Box(left, 24, width - right, height - 34, (min(xs), max(xs)), (low, high))
    out = [f'<text class="soft" x="2" y="12">{escape(y_label)}</text>']
    for tick in y_ticks:
        out.append(f'<line class="grid" x1="{left:.1f}" x2="{box.right:.1f}" y1="{box.y(tick):.1f}" '
                   f'y2="{box.y(tick):.1f}"/><text class="soft" x="{left - 5:.1f}" y="{box.y(tick) + 4:.1f}" '
                   f'text-anchor="end">{_number(tick, step)}</text>')
    shown = ticks(min(xs), max(xs), 4, whole=True) if x_ticks is None else x_ticks
    for tick in shown:
        if box.xs[0] <= tick <= box.xs[1]:
            out.append(f'<text class="soft" x="{box.x(tick):.1f}" y="{box.bottom + 15:.1f}" text-anchor="middle">'
                       f'{_number(tick, 1)}</text>')
    out.append(f'<text class="soft" x="{(left + box.right) / 2:.1f}" y="{height - 4}" text-anchor="middle">'
               f"{escape(x_label)}</text>")
    for x, text in (rule for rule in rules if box.xs[0] <= rule[0] <= box.xs[1]):
        out.append(f'<line class="grid" stroke-dasharray="2 3" x1="{box.x(x):.1f}" x2="{box.x(x):.1f}" '
                   f'y1="{box.top}" y2="{box.bottom}"/><text class="soft" font-size="9" x="{box.x(x) + 2:.1f}" '
                   f'y="{box.top + 8}">{escape(text)}</text>')
    for line in series:
        out += _line(line, box, digits, x_names)
    out += _end_labels(series, box)
    return _svg(width, height, title, out)


def _line(line, box, digits, x_names):
    parts, pen = [], "M"
    for x, y in line.points:
        if y is None:
            pen = "M"
            continue
        parts.append(f"{pen}{box.x(x):.1f} {box.y(y):.1f}")
        pen = "L"
    dash = ' stroke-dasharray="6 4"' if line.dashed else ""
    out = [f'<path class="s{line.color}" fill="none" stroke-width="2" stroke-linejoin="round"{dash} '
           f'd="{"".join(parts)}"/>']
    if line.marks:
        shape = _SHAPES[line.color % len(_SHAPES)]
        out += [f'<path class="f{line.color}" d="{shape(box.x(x), box.y(y))}"><title>{escape(line.name)}, {x_names} '
                f"{x:g}: {y:.{digits}f}</title></path>" for x, y in line.points if y is not None]
    return out


def _circle(x, y):
    return f"M{x - 3.5:.1f} {y:.1f}a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0 -7 0"


def _square(x, y):
    return f"M{x - 3.2:.1f} {y - 3.2:.1f}h6.4v6.4h-6.4z"


def _diamond(x, y):
    return f"M{x:.1f} {y - 4.2:.1f}l4.2 4.2l-4.2 4.2l-4.2 -4.2z"


_SHAPES = (_circle, _square, _diamond)  # shapes tell lines apart where colours do not


def _end_labels(series, box):
    """The names at the right, moved apart where the lines end close together."""
    ends = []
    for line in series:
        last = next(((x, y) for x, y in reversed(line.points) if y is not None), None)
        if last is not None:
            ends.append([box.y(last[1]), line])
    ends.sort(key=lambda end: end[0])
    for above, below in zip(ends, ends[1:]):
        below[0] = max(below[0], above[0] + _SIZE + 2)
    surplus = max(0, ends[-1][0] - box.bottom) if ends else 0
    return [f'<text class="f{line.color}" font-weight="600" x="{box.right + 6:.1f}" y="{y - surplus + 4:.1f}">'
            f"{escape(line.name)}</text>" for y, line in ends]


@dataclass
class _Box:
    """The plane of a chart: pixels of its sides and the values that they stand for."""

    left: float
    top: float
    right: float
    bottom: float
    xs: tuple
    ys: tuple

    def x(self, value):
        span = self.xs[1] - self.xs[0]
        return self.left + 6 + (self.right - self.left - 12) * ((value - self.xs[0]) / span if span else 0.5)

    def y(self, value):
        span = self.ys[1] - self.ys[0]
        return self.bottom - (self.bottom - self.top) * ((value - self.ys[0]) / span if span else 0.5)


@dataclass
class Columns:
    """Columns of a heat map that belong together: a heading, a label each, and (rows, columns) values or None.

    ``top`` is the value of the strongest colour (default: the largest one); ``diverging`` puts 0 in the middle.
    """

    heading: str
    labels: list
    values: list
    digits: int = 0
    top: float | None = None
    diverging: bool = False


def heat_map(title, names, groups):
    """Rows of cells with their numbers in them; ``names`` are the rows' names and ``groups`` a list of ``Columns``."""
    groups = [group for group in groups if group.labels]
    if not names or not groups:
        return None
    shown = [name if len(name) <= 15 else name[:14] + "…" for name in names]
    left, (cell, line) = 8 + _LETTER * max(map(len, shown)), _CELL
    top = 34 if any(group.heading for group in groups) else 20
    out, x = [], left
    for group in groups:
        start = x
        strongest = group.top or max((abs(value) for row in group.values for value in row if value is not None),
                                     default=0) or 1
        out.append(f'<text class="ink" font-weight="600" x="{x:.1f}" y="12">{escape(group.heading)}</text>')
        width = max(cell, *(6 + _LETTER * len(_cell_text(value, group.digits)) for row in group.values for value in row))
        for column, label in enumerate(group.labels):
            out.append(f'<text class="soft" x="{x + width / 2:.1f}" y="{top - 5}" text-anchor="middle">'
                       f"{escape(label)}</text>")
            for row, name in enumerate(names):
                value = group.values[row][column]
                out += _cell(x, top + line * row, width, value, strongest, group,
                             f"{name}, {group.heading} {label}".strip())
            x += width
        x = max(x, start + _BOLD * len(group.heading)) + 10
    for row, name in enumerate(shown):
        out.append(f'<text class="ink" x="{left - 6:.1f}" y="{top + line * row + 14}" text-anchor="end">'
                   f"{escape(name)}</text>")
    return _svg(math.ceil(x - 6), top + line * len(names) + 4, title, out)


def _cell(x, y, width, value, strongest, group, what):
    if value is None:
        color = MISSING
    elif group.diverging:
        color = _mix(_DIVERGING, 0.5 + value / strongest / 2)
    else:
        color = _mix(_SEQUENTIAL, value / strongest)
    light = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2] > 140
    text = _cell_text(value, group.digits)
    opacity = ' fill-opacity="0.25"' if value is None else ""
    return [f'<rect x="{x:.1f}" y="{y}" width="{width - 1:.1f}" height="{_CELL[1] - 1}" fill="rgb{color}"{opacity}>'
            f"<title>{escape(what)}: {text}</title></rect>"
            f'<text x="{x + width / 2 - 0.5:.1f}" y="{y + 14}" text-anchor="middle" '
            + ('class="soft">' if value is None else f'fill="{"#111" if light else "#fff"}">') + f"{text}</text>"]


def _cell_text(value, digits):
    if value is None:
        return "-"
    return f"{round(value, digits) + 0.0:.{digits}f}".replace("-", "−")  # + 0.0: no negative zero


def _mix(stops, place):
    place = min(max(place, 0), 1) * (len(stops) - 1)
    index = min(int(place), len(stops) - 2)
    return tuple(round(a + (b - a) * (place - index)) for a, b in zip(stops[index], stops[index + 1]))


def bar_chart(title, rows, unit="", names=(), digits=1, width=WIDTH):
    """Horizontal bars. ``rows``: (label, [(colour's number, value, pattern)]) with values above 0 to the right of the
    axis and those below 0 to its left, one after the other; ``names``: (colour's number, pattern, text) for the legend.

    ``pattern`` is "" or "pale".
    """
    if not rows:
        return None
    left, line = 10 + _LETTER * max(len(label) for label, _ in rows), 22
    highs = [sum(value for _, value, _ in parts if value > 0) for _, parts in rows]
    lows = [-sum(value for _, value, _ in parts if value < 0) for _, parts in rows]
    space = 8 + _LETTER * (digits + 5)
    span = max(max(highs) + max(lows), 1e-9)
    scale = (width - left - space * (2 if max(lows) else 1)) / span
    axis = left + (space if max(lows) else 0) + max(lows) * scale
    out = []
    for index, (label, parts) in enumerate(rows):
        y, ends = 4 + line * index, {1: axis, -1: axis}
        out.append(f'<text class="ink" x="{left - 6:.1f}" y="{y + 14}" text-anchor="end">{escape(label)}</text>')
        for color, value, pattern in parts:
            side = 1 if value >= 0 else -1
            size = abs(value) * scale
            x = ends[side] if side > 0 else ends[side] - size
            ends[side] += side * size
            pale = ' fill-opacity="0.5"' if pattern else ""
            name = next((text for number, kind, text in names if (number, kind) == (color, pattern)), "")
            out.append(f'<rect class="f{color}"{pale} x="{x:.1f}" y="{y + 2}" width="{size:.2f}" height="{line - 6}">'
                       f"<title>{escape(label)}, {escape(name)}: {abs(value):.{digits}f} {unit}</title></rect>")
        for side, total in ((1, highs[index]), (-1, lows[index])):
            if total or side > 0:
                out.append(f'<text class="soft" x="{ends[side] + side * 4:.1f}" y="{y + 14}" '
                           f'text-anchor="{"start" if side > 0 else "end"}">{total:.{digits}f}</text>')
    bottom = 4 + line * len(rows)
    out.append(f'<line class="axis" x1="{axis:.1f}" x2="{axis:.1f}" y1="2" y2="{bottom}"/>')
    x, y = 4, bottom + 16
    for color, pattern, text in names:
        if x > 4 and x + 18 + _LETTER * len(text) > width:
            x, y = 4, y + 16
        pale = ' fill-opacity="0.5"' if pattern else ""
        out.append(f'<rect class="f{color}"{pale} x="{x}" y="{y - 9}" width="11" height="11"/>'
                   f'<text class="soft" x="{x + 15}" y="{y}">{escape(text)}</text>')
        x += 26 + round(_LETTER * len(text))
    return _svg(width, (y + 6) if names else bottom + 4, title, out)


def ticks(low, high, count=5, whole=False):
    """Round numbers from ``low`` to ``high``, about ``count`` of them."""
    span = high - low
    if span <= 0:
        return [low]
    raw = span / count
    power = 10 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
    if whole:
        step = max(1, round(step))
    first = math.ceil(low / step - 1e-9)
    return [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]


def thinned(points, most=160):
    """At most about ``most`` points: means over neighbours, so that a long curve stays small."""
    if len(points) <= most:
        return points
    size = math.ceil(len(points) / most)
    parts = [points[start : start + size] for start in range(0, len(points), size)]
    return [(part[-1][0], sum(y for _, y in part) / len(part)) for part in parts]


def _range(values, from_zero):
    low, high = min(values), max(values)
    if from_zero:
        low = min(low, 0)
    if low == high:
        low, high = low - 0.5, high + 0.5
    margin = (high - low) * 0.06
    return (low if from_zero and low == 0 else low - margin), high + margin


def _number(value, step):
    """A tick as text, with as many digits as the distance between ticks needs."""
    if abs(value) >= 10_000 and value % 1000 == 0:
        return f"{value / 1000:.0f}k".replace("-", "−")
    digits = next((digits for digits in range(9) if math.isclose(round(step, digits), step, rel_tol=1e-6)), 9)
    return f"{value:.{digits}f}".replace("-", "−")


def _svg(width, height, title, parts):
    return (f'<svg viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}" role="img" '
            f'aria-label="{escape(title, quote=True)}"><title>{escape(title)}</title>{"".join(parts)}</svg>')
