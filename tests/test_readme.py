"""The README's Python runs, and says what the command line says."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import Any

from adaptcache.schedule.schedule import Schedule

ROOT = Path(__file__).resolve().parent.parent


def test_the_example_gives_the_numbers_of_the_shipped_schedule() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    space: dict[str, Any] = {}
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(code, "README.md", "exec"), space)
    made, shipped = space["schedule"], Schedule.load(ROOT / "schedules" / "emoji-flux-28-2.8x.json")
    assert made.evidence.calls == shipped.evidence.calls == (10, 28)
    assert abs(made.evidence.psnr["mean"] - shipped.evidence.psnr["mean"]) < 1.0  # other machines round otherwise
    assert "10 denoiser calls made, 18 skipped (calibrated)" in printed.getvalue()
    assert space["image"].size == (32, 32)
