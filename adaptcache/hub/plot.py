"""The picture on a model card: which steps each schedule computes, and how good that is."""

from __future__ import annotations

import io
from collections.abc import Mapping

from PIL import Image, ImageDraw, ImageFont

from ..policies.plan import Plan
from ..schedule.schedule import Schedule

__all__ = ["plot"]

WIDTH, LEFT, RIGHT, CHART, ROW, GAP = 900, 190, 30, 240, 26, 14  # pixels
INK, SOFT, FILL = "#1b1f24", "#8c959f", "#2f6feb"
DECIBELS = 10  # between two lines of the grid
TEXT = 13

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def plot(schedules: Mapping[str, Schedule]) -> bytes:
    """Returns a PNG: decibels over the share of calls, mean and 5th percentile, and a strip a schedule.

    Arguments:
        schedules: The schedules of a folder by name; "" is the one without.
    """
    measured = {name: s for name, s in sorted(schedules.items()) if s.evidence}
    top = CHART if measured else GAP
    image = Image.new("RGB", (WIDTH, top + 2 * GAP + ROW * len(schedules)), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(TEXT)
    if measured:
        _chart(draw, font, measured)
    for number, (name, schedule) in enumerate(sorted(schedules.items())):
        _strip(draw, font, top + GAP + number * ROW, name, schedule)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _chart(draw: ImageDraw.ImageDraw, font: Font, schedules: Mapping[str, Schedule]) -> None:
    seen = [(name, s.evidence) for name, s in schedules.items() if s.evidence]
    values = [value for _, evidence in seen for value in evidence.psnr.values()]
    low, high = DECIBELS * (min(values) // DECIBELS), DECIBELS * (max(values) // DECIBELS + 1)
    bottom = CHART - 3 * GAP

    def across(share: float) -> float:
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def up(decibels: float) -> float:
        return bottom - (decibels - low) / (high - low) * (bottom - GAP)

    for line in range(int(low), int(high) + 1, DECIBELS):
        draw.line((LEFT, up(line), WIDTH - RIGHT, up(line)), fill="#d8dee4")
        draw.text((LEFT - 8, up(line)), f"{line} dB", fill=SOFT, font=font, anchor="rm")
    for tenth in range(0, 11, 2):
        draw.text((across(tenth / 10), bottom + 6), f"{tenth / 10:g}", fill=SOFT, font=font, anchor="mt")
    label = "share of the denoiser calls made (PSNR to the full run: mean, and 5th percentile below it)"
    draw.text((LEFT, bottom + 6 + TEXT + 4), label, fill=SOFT, font=font)
    for name, evidence in seen:
        x, mean, few = across(evidence.calls[0] / max(1, evidence.calls[1])), *_levels(evidence.psnr)
        draw.line((x, up(mean), x, up(few)), fill=FILL, width=2)
        draw.line((x - 4, up(few), x + 4, up(few)), fill=FILL, width=2)
        draw.ellipse((x - 4, up(mean) - 4, x + 4, up(mean) + 4), fill=FILL)
        draw.text((x + 9, up(mean)), name or "default", fill=INK, font=font, anchor="lm")


def _levels(psnr: Mapping[str, float]) -> tuple[float, float]:
    return psnr["mean"], psnr["p05"]


def _strip(draw: ImageDraw.ImageDraw, font: Font, y: float, name: str, schedule: Schedule) -> None:
    policy, times = schedule.rules[0].policy, schedule.grid.times
    draw.text((GAP, y + ROW / 2), (name or "default")[:24], fill=INK, font=font, anchor="lm")
    if not isinstance(policy, Plan) or not times:
        draw.text(
            (LEFT, y + ROW / 2), f"decides as it runs ({policy.type})", fill=SOFT, font=font, anchor="lm"
        )
        return
    steps, cell = set(policy.steps(times)), (WIDTH - LEFT - RIGHT) / len(times)
    for i in range(len(times)):
        box = (LEFT + i * cell, y + 4, LEFT + (i + 0.85) * cell, y + ROW - 4)
        draw.rectangle(box, fill=FILL if i in steps else None, outline=FILL if i in steps else "#d8dee4")
