"""What each part of calibration adds, what few steps leave, and what a precision hides: tables of held-out prompts.

    python -m benchmarks.parts --model emoji-flux-32
    python -m benchmarks.parts --parts "as calibrated" --steps 16,8,6,4 --budgets 0.75,0.5,0.36
    python -m benchmarks.parts --model emoji-flux-32 --parts "as calibrated" --dtype bfloat16

A row is a calibration of its own. PSNR in dB against the full run, mean (5th percentile), of it and of as many plain
steps; the precision floor, above which rounding hides everything; and its cost in full runs of one prompt, without
those that all share: the profile and the sensitivities.
"""

from __future__ import annotations

import argparse
from typing import Any

from adaptcache import Schedule, calibrate
from adaptcache.calibration.match import Fit
from adaptcache.presets import read_prompts, resolve

PARTS: dict[str, dict[str, Any]] = {
    "planner's plan, weights at skipped steps": {"effort": 0.0, "fit": Fit(correct=False)},
    "+ weights at computed steps": {"effort": 0.0},
    "as calibrated": {},
    "+ refinement": {"effort": None},
    "own times": {"times": "own"},
    "own times, + refinement": {"times": "own", "effort": None},
}


def row(schedule: Schedule) -> str:
    """Returns a row of the table without its first cells."""
    evidence = schedule.evidence
    assert evidence and evidence.baseline
    own, plain = (f"{worth['mean']:.1f} ({worth['p05']:.1f})" for worth in (evidence.psnr, evidence.baseline.psnr))
    floor = "-" if evidence.precision_floor is None else f"{evidence.precision_floor:.1f}"
    verdict = "do not cache" if evidence.verdict else ""
    return f"{evidence.calls[0]} | {own} | {plain} | {floor} | {schedule.made['search']['full_runs']} | {verdict} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="emoji-flux")
    parser.add_argument("--steps", default="28")
    parser.add_argument("--budgets", default="0.5,0.36,0.25,0.18")
    parser.add_argument("--parts", default=";".join(PARTS), help="separated by ;")
    parser.add_argument("--effort", type=float, default=60.0, help="of the rows with refinement, in full runs")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--fit-on", type=int, default=16)
    parser.add_argument("--eval-on", type=int, default=32)
    parser.add_argument("--cache", help="a folder where full runs are kept")
    asked = parser.parse_args()
    preset = resolve(asked.model)
    preset = preset.model_copy(update={"dtype": asked.dtype or preset.dtype})
    pipe, known = preset.load_pipeline(), read_prompts(preset.prompts)
    print("| steps | parts | calls | PSNR | as many plain steps | floor | full runs | verdict |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for steps in map(int, asked.steps.split(",")):
        for budget in map(float, asked.budgets.split(",")):
            for part in asked.parts.split(";"):
                how = {name: asked.effort if value is None else value for name, value in PARTS[part].items()}
                schedule = calibrate(
                    pipe, known.calibration[: asked.fit_on], steps, speed=None, budget=budget,
                    eval_prompts=known.held_out[: asked.eval_on], batch_size=preset.batch_size, progress=False,
                    cache_dir=asked.cache, pipe_kwargs=preset.call, **how,
                )  # fmt: skip
                print(f"| {steps} | {part} | {row(schedule)}", flush=True)


if __name__ == "__main__":
    main()
