"""Draws a memory plan as SVG: each buffer a rectangle, its steps across and its bytes in the arena upwards."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

# Muted fills that dark text can be read on, told apart by hue; the last is for whatever roles are left.
_COLOURS = (
    "#8fb3d9",
    "#f2c38b",
    "#9cc9a3",
    "#d9a3b8",
    "#c7b8e0",
    "#e8dc96",
    "#8ecac9",
    "#e3a78f",
    "#b9c690",
    "#c9c9c9",
)
_OTHER = "other"

_LEFT, _RIGHT, _TOP, _BOTTOM = 78, 24, 84, 96  # margins in pixels
_HEIGHT = 560  # of the plot
_MIN_WIDTH, _MAX_WIDTH, _STEP_WIDTH = 900, 2600, 11
_FONT = 11  # pixels
_CHARACTER = 0.6 * _FONT  # width of an average character
_LINE = 14  # pixels from one line of text to the next

_UNITS = (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10), ("B", 1))

_STYLE = f"""\
text {{ font-family: system-ui, "DejaVu Sans", sans-serif; font-size: {_FONT}px; fill: #2b2f33; }}
.title {{ font-size: 15px; font-weight: 600; }}
.axis, .tick {{ fill: #5c6369; }}
.buffer {{ stroke: #ffffff; stroke-width: 0.8; }}
.buffer:hover {{ stroke: #2b2f33; stroke-width: 1.6; }}
.label {{ pointer-events: none; }}
.grid {{ stroke: #e4e7ea; }}
.peak {{ stroke: #b3372f; stroke-width: 1.4; }}
.bound {{ stroke: #2f5fb3; stroke-width: 1.4; stroke-dasharray: 6 4; }}"""


@dataclass(frozen=True)
class _Buffer:
    name: str
    size: int  # bytes
    begin: int
    end: int
    offset: int  # bytes


@dataclass(frozen=True)
class _Step:
    name: str
    block: str  # "layers.3"; empty for a step outside the blocks


@dataclass(frozen=True)
class _Plan:
    steps: list[_Step]
    buffers: list[_Buffer]
    peak: int
    lower_bound: int


class _Scale:
    """From steps and bytes to pixels."""

    def __init__(self, steps: int, top: int) -> None:
        self.width = min(max(steps * _STEP_WIDTH, _MIN_WIDTH), _MAX_WIDTH)
        self.right = _LEFT + self.width
        self.floor = _TOP + _HEIGHT
        self._per_step = self.width / max(steps, 1)
        self._per_byte = _HEIGHT / max(top, 1)

    def x(self, step: float) -> float:
        return _LEFT + step * self._per_step

    def y(self, offset: float) -> float:
        return self.floor - offset * self._per_byte


def plan_svg(plan: Mapping[str, Any], title: str) -> str:
    """Draws the arena of a memory plan.

    Args:
        plan: "steps" (names, or mappings with "name" and optionally "reads" and "writes", indices of buffers, which
            tell the block that a step belongs to), "buffers" (mappings with "name", "size" in bytes, the steps
            "begin" and "end", and "offset" in bytes; those with an offset below 0 lie outside the arena and are left
            out), "peak" and "lower_bound" in bytes. What Engine.program() returns.
        title: A line above the drawing.

    Returns:
        An SVG document. Every buffer and step has a tooltip; names are written where there is room.
    """
    drawn = _read(plan)
    scale = _Scale(len(drawn.steps), max(drawn.peak, drawn.lower_bound))
    roles = _roles(drawn.buffers)
    lines = [
        *_frame(scale, title, drawn),
        *_bands(scale, drawn.steps),
        *_byte_axis(scale, drawn.peak),
        *(_rectangle(scale, buffer, roles) for buffer in drawn.buffers),
        *(label for buffer in drawn.buffers for label in _label(scale, buffer)),
        *_step_axis(scale, drawn.steps),
        *_limits(scale, drawn),
        *_legend(scale, roles),
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def _read(plan: Mapping[str, Any]) -> _Plan:
    buffers = [
        _Buffer(str(b["name"]), int(b["size"]), int(b["begin"]), int(b["end"]), int(b["offset"]))
        for b in plan["buffers"]
        if b["offset"] >= 0 and b["size"] > 0
    ]
    steps = [_read_step(step, plan["buffers"]) for step in plan["steps"]]
    return _Plan(steps, buffers, int(plan["peak"]), int(plan["lower_bound"]))


def _read_step(step: str | Mapping[str, Any], buffers: Sequence[Mapping[str, Any]]) -> _Step:
    if isinstance(step, str):
        return _Step(step, _block(step))
    touched = [str(buffers[i]["name"]) for i in (*step.get("writes", ()), *step.get("reads", ()))]
    blocks = (_block(name) for name in (str(step["name"]), *touched))
    return _Step(str(step["name"]), next((block for block in blocks if block), ""))


def _block(name: str) -> str:
    """The block a name belongs to, "layers.3" of "layers.3.xz"; empty where there is none."""
    match = re.match(r"(.*?\b\d+)\.", name)
    return match.group(1) if match else ""


def _role(name: str) -> str:
    """What a name says apart from its block: "xz" of "layers.3.xz"."""
    return name.removeprefix(_block(name) + ".")


def _roles(buffers: Sequence[_Buffer]) -> dict[str, str]:
    """Colours by role, those that cover the largest area first; the last is for the remaining roles."""
    area: dict[str, int] = {}
    for buffer in buffers:
        role = _role(buffer.name)
        area[role] = area.get(role, 0) + buffer.size * (buffer.end - buffer.begin)
    ranked = sorted(area, key=lambda role: (-area[role], role))
    colours = dict(zip(ranked, _COLOURS[:-1], strict=False))
    if len(ranked) > len(colours):
        colours[_OTHER] = _COLOURS[-1]
    return colours


def _unit(size: int) -> tuple[str, int]:
    return next((unit for unit in _UNITS if size >= unit[1]), _UNITS[-1])


def _bytes_text(size: int) -> str:
    name, unit = _unit(size)
    return f"{size} B" if unit == 1 else f"{size / unit:.2f} {name}"


def _text(x: float, y: float, content: str, attributes: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}"{" " + attributes if attributes else ""}>{escape(content)}</text>'


def _frame(scale: _Scale, title: str, plan: _Plan) -> Iterator[str]:
    width, height = scale.right + _RIGHT, scale.floor + _BOTTOM
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f'role="img">'
    )
    yield f"<title>{escape(title)}</title>"
    yield f"<style>{_STYLE}</style>"
    yield f'<rect width="{width}" height="{height}" fill="#ffffff"/>'
    yield _text(_LEFT, 24, title, 'class="title"')
    if plan.lower_bound:
        ratio = f"{plan.peak / plan.lower_bound:.4f}".rstrip("0").rstrip(".")
        facts = f"{len(plan.buffers)} buffers, {len(plan.steps)} steps, peak / lower bound = {ratio}"
        yield _text(scale.right, 24, facts, 'class="axis" text-anchor="end"')


def _groups(steps: Sequence[_Step]) -> list[tuple[str, int, int]]:
    """Runs of steps of one block: (block or "", first step, one past the last)."""
    runs: list[tuple[str, int, int]] = []
    for i, step in enumerate(steps):
        if runs and runs[-1][0] == step.block:
            runs[-1] = (step.block, runs[-1][1], i + 1)
        else:
            runs.append((step.block, i, i + 1))
    return runs


def _bands(scale: _Scale, steps: Sequence[_Step]) -> Iterator[str]:
    """A shade behind every other block."""
    for i, (group, first, last) in enumerate(_groups(steps)):
        if group and i % 2 == 1:
            x, width = scale.x(first), scale.x(last) - scale.x(first)
            yield f'<rect x="{x:.1f}" y="{_TOP}" width="{width:.1f}" height="{_HEIGHT}" fill="#f5f6f8"/>'


def _byte_axis(scale: _Scale, peak: int) -> Iterator[str]:
    unit_name, unit = _unit(peak)
    for tick in _ticks(peak / unit):
        y = scale.y(tick * unit)
        yield f'<line class="grid" x1="{_LEFT}" y1="{y:.1f}" x2="{scale.right}" y2="{y:.1f}"/>'
        yield _text(_LEFT - 8, y + 4, f"{tick:g}", 'class="tick" text-anchor="end"')
    middle = _TOP + _HEIGHT / 2
    turned = f'class="axis" text-anchor="middle" transform="rotate(-90 20 {middle:.1f})"'
    yield _text(20, middle, f"offset in the arena ({unit_name})", turned)


def _ticks(top: float) -> list[float]:
    """About six round numbers from 0 to `top`."""
    if top <= 0:
        return [0.0]
    rough = top / 6
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * next(factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    return [round(i * step, 9) for i in range(int(top / step + 1e-9) + 1)]


def _tooltip(buffer: _Buffer) -> str:
    steps = f"step {buffer.begin}" if buffer.end == buffer.begin + 1 else f"steps {buffer.begin} to {buffer.end - 1}"
    return f"{buffer.name}: {_bytes_text(buffer.size)}, {steps}, offset {buffer.offset:,}"


def _rectangle(scale: _Scale, buffer: _Buffer, roles: Mapping[str, str]) -> str:
    x, y = scale.x(buffer.begin), scale.y(buffer.offset + buffer.size)
    width, height = scale.x(buffer.end) - x, scale.y(buffer.offset) - y
    colour = roles.get(_role(buffer.name)) or roles[_OTHER]
    # Slivers stay visible: no border, at least half a pixel.
    border = "" if height > 3 else ' stroke="none" style="stroke-width: 0"'
    return (
        f'<rect class="buffer" x="{x:.2f}" y="{y:.2f}" width="{width:.2f}" height="{max(height, 0.5):.2f}" '
        f'fill="{colour}"{border}><title>{escape(_tooltip(buffer))}</title></rect>'
    )


def _label(scale: _Scale, buffer: _Buffer) -> Iterator[str]:
    """The buffer's name, or else its role, across or upwards, where the rectangle holds it."""
    width = scale.x(buffer.end) - scale.x(buffer.begin)
    height = scale.y(buffer.offset) - scale.y(buffer.offset + buffer.size)
    x, y = scale.x((buffer.begin + buffer.end) / 2), scale.y(buffer.offset + buffer.size / 2)
    for content in (buffer.name, _role(buffer.name)):
        length = len(content) * _CHARACTER + 6
        if length <= width and height >= _LINE:
            yield _text(x, y + 4, content, 'class="label" text-anchor="middle"')
            return
        if length <= height and width >= _LINE:
            turned = f'class="label" text-anchor="middle" transform="rotate(-90 {x:.1f} {y:.1f})"'
            yield _text(x, y + 4, content, turned)
            return


def _step_axis(scale: _Scale, steps: Sequence[_Step]) -> Iterator[str]:
    """Blocks where the steps have them, step names where they have not; every step's name as a tooltip."""
    for i, step in enumerate(steps):
        x, width = scale.x(i), scale.x(i + 1) - scale.x(i)
        shade = "#c3c9cf" if i % 2 else "#dde1e5"
        tooltip = escape(f"step {i}: {step.name}" + (f" ({step.block})" if step.block else ""))
        yield f'<rect x="{x:.2f}" y="{scale.floor}" width="{width:.2f}" height="8" fill="{shade}">'
        yield f"<title>{tooltip}</title></rect>"
    runs = _groups(steps)
    roomy = all(len(group) * _CHARACTER + 6 <= scale.x(last) - scale.x(first) for group, first, last in runs)
    free_from = -math.inf  # the pixel up to which labels have been written
    for group, first, last in runs:
        if group:
            content = group if roomy else group.rsplit(".", 1)[-1]
            x, half = (scale.x(first) + scale.x(last)) / 2, len(content) * _CHARACTER / 2
            if x - half >= free_from:
                yield _text(x, scale.floor + 22, content, 'class="tick" text-anchor="middle"')
                free_from = x + half + 4
            continue
        for i in range(first, last):
            x = scale.x(i + 0.5) + 4
            if x - _LINE < free_from:
                continue
            turned = f'class="tick" text-anchor="end" transform="rotate(-45 {x:.1f} {scale.floor + 20})"'
            yield _text(x, scale.floor + 20, _shortened(steps[i].name, 14), turned)
            free_from = x
    yield _text(
        _LEFT + scale.width / 2, scale.floor + _BOTTOM - 6, _step_caption(runs), 'class="axis" text-anchor="middle"'
    )


def _step_caption(runs: Sequence[tuple[str, int, int]]) -> str:
    prefixes = {group.rsplit(".", 1)[0] for group, _, _ in runs if "." in group}
    return f"step, grouped by {', '.join(sorted(prefixes))}" if prefixes else "step"


def _shortened(content: str, length: int) -> str:
    return content if len(content) <= length else content[: length - 1] + "…"


def _limits(scale: _Scale, plan: _Plan) -> Iterator[str]:
    """The peak and the lower bound as lines; the bound is dashed, so both show where they coincide."""
    peak, bound = scale.y(plan.peak), scale.y(plan.lower_bound)
    yield f'<line class="peak" x1="{_LEFT}" y1="{peak:.1f}" x2="{scale.right}" y2="{peak:.1f}"/>'
    yield f'<line class="bound" x1="{_LEFT}" y1="{bound:.1f}" x2="{scale.right}" y2="{bound:.1f}"/>'
    peak_text = f"peak {_bytes_text(plan.peak)}"
    bound_text = f"lower bound {_bytes_text(plan.lower_bound)}"
    top = min(peak, bound) - 5
    yield _text(_LEFT, top, peak_text, 'style="fill: #b3372f"')
    # Beside the peak's text where there is no room for a line of its own below.
    if bound - peak < 2 * _LINE:
        yield _text(_LEFT + (len(peak_text) + 3) * _CHARACTER, top, bound_text, 'style="fill: #2f5fb3"')
    else:
        halo = 'style="fill: #2f5fb3; stroke: #ffffff; stroke-width: 3px; paint-order: stroke"'
        yield _text(_LEFT + 4, bound - 4, bound_text, halo)


def _legend(scale: _Scale, roles: Mapping[str, str]) -> Iterator[str]:
    x = float(_LEFT)
    for role, colour in roles.items():
        content = _shortened(role, 24)
        width = 16 + len(content) * _CHARACTER + 14
        if x + width > scale.right:
            return
        yield f'<rect x="{x:.1f}" y="40" width="11" height="11" rx="2" fill="{colour}"/>'
        yield _text(x + 16, 50, content)
        x += width
