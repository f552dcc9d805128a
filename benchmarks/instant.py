"""Instant schedules on the demo models: `python -m benchmarks.instant`.

For each model and setting (plain, guided, shift 3, 50 steps, DPM++ 2M) and each speed: mean PSNR in dB against the
full run, on held-out prompts, of the instant schedule, of as many plain steps, with `--rivals` of the best of other
methods that are fitted to nothing, each with all its settings tried on two calibration prompts (`--sweep-on`), and
with `--calibrate` of a fitted one. `--out` keeps rows in a file as they are made, and goes on where it ended.
`--kernels` compares theory's kernel with the measured one instead, `--time` tells what making a schedule costs.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline, EDMDPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler
from rich.console import Console
from rich.table import Table

from adaptcache import Schedule, calibrate
from adaptcache.cache import Cache
from adaptcache.comparison.baselines import BASELINES
from adaptcache.comparison.baselines import Case as Comparing
from adaptcache.comparison.runner import ComparisonRunner, Tried, pick
from adaptcache.comparison.trial import pipe_of
from adaptcache.engines import make_setup
from adaptcache.engines.diffusers.affine import read_run
from adaptcache.engines.diffusers.engine import DiffusersEngine, twin
from adaptcache.engines.diffusers.sampler import sampler
from adaptcache.evaluation.generate import generate, reference_images
from adaptcache.evaluation.metrics import psnr
from adaptcache.fitting.instant import build_toy
from adaptcache.fitting.kernel import Array, fit_open_loop, forecast_error
from adaptcache.fitting.worlds import PRIOR, World
from adaptcache.presets import read_prompts, resolve
from adaptcache.profiling.measure import record
from adaptcache.runs import PromptSet, Setup
from adaptcache.runtime.runner import InstantRunner
from adaptcache.schedule.instant import InstantRequest

MODELS = ("emoji-flux-32", "emoji-flux", "emoji-wan", "tones")
SETTINGS = ("plain", "guided", "shift 3", "50 steps", "DPM++ 2M")
SPEEDS = (2.0, 2.8, 4.0)
SWEPT = 2  # calibration prompts that settings of rivals are chosen on
RIVALS = (
    "AB2", "DPM++ 2M", "UniPC", "AYS", "TaylorSeer lite", "HiCache", "MagCache", "TeaCache", "EasyCache",
    "FirstBlockCache",
)  # fmt: skip


class CosineODE(EDMDPMSolverMultistepScheduler):  # type: ignore[misc]
    """The deterministic sampler for `tones`, whose own one adds noise."""

    def precondition_noise(self, sigma: Any) -> torch.Tensor:
        return torch.atan(torch.as_tensor(sigma)) / np.pi * 2


@dataclass(frozen=True)
class Case:
    """A model in a setting.

    Arguments:
        model: Its name.
        setting: One of SETTINGS.
        setup: Who runs, and how.
        known: Calibration prompts.
        prompts: Held-out ones.
    """

    model: str
    setting: str
    setup: Setup
    known: tuple[str, ...]
    prompts: PromptSet

    def fewer(self, calls: int) -> Setup:
        """Returns as many plain steps."""
        return replace(self.setup, call=replace(self.setup.call, num_inference_steps=calls))

    def score(self, images: list[np.ndarray]) -> float:
        """Returns the mean PSNR against the full run, in dB."""
        full = reference_images(self.setup, self.prompts)
        return float(np.mean([psnr(a, b) for a, b in zip(images, full, strict=True)]))

    def instant(self, speed: float, guard: bool = True) -> tuple[float, int, int]:
        """Returns what an instant schedule reaches, its calls, and those made: the guard may compute more."""
        runner = InstantRunner(speed, read_run, guard)
        made = generate(self.setup, self.prompts, runner)
        return self.score(made.images), len(runner.original.plans[0]), round(made.calls)


def cases(model: str, folder: str | None, count: int, settings: list[str]) -> Iterator[Case]:
    """Yields a model in all settings it has.

    Arguments:
        model: The name of a demo model, or "emoji128".
        folder: Where emoji128 is, with its prompts beside it (`emoji128-prompts.txt`).
        count: How many held-out prompts.
        settings: Those wanted.
    """
    if model == "emoji128":
        pipe = DiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
        known, steps = read_prompts(f"{folder}-prompts.txt"), 28
        call: dict[str, Any] = {"height": 128, "width": 128, "guidance_scale": 0.0, "max_sequence_length": 16}
    else:
        preset = resolve(model)
        pipe, known = preset.load_pipeline("cpu"), read_prompts(preset.prompts)
        steps, call = 28 if model == "tones" else preset.steps, dict(preset.call)
    pipe.set_progress_bar_config(disable=True)
    first = pipe.scheduler
    if model in ("emoji-wan", "tones"):
        plain, guided = {**call, "guidance_scale": 1.0}, {**call, "guidance_scale": 3.0}
    else:
        plain, guided = call, {**call, "true_cfg_scale": 2.5, "negative_prompt": ""}
    for setting in settings:
        pipe = copy.copy(pipe)
        if model == "tones":
            if setting == "shift 3":
                continue
            kept = {name: first.config[name] for name in ("sigma_min", "sigma_max", "sigma_data")}
            order = 2 if setting == "DPM++ 2M" else 1
            pipe.scheduler = CosineODE(
                **kept, sigma_schedule="exponential", prediction_type="v_prediction", solver_order=order
            )
        else:
            own = float(first.config.get("shift") or first.config.get("flow_shift") or 1.0)
            flow = FlowMatchEulerDiscreteScheduler(shift=3.0 if setting == "shift 3" else own)
            pipe.scheduler = sampler("DPMSolverMultistepScheduler", flow) if setting == "DPM++ 2M" else flow
        options = {
            "pipe_kwargs": guided if setting == "guided" else plain, "batch_size": count, "cache_dir": Cache(),
            "progress": False,
        }  # fmt: skip
        setup = make_setup(pipe, 50 if setting == "50 steps" else steps, options)
        prompts = PromptSet.of(known.held_out[:count], len(known.calibration))
        yield Case(model, setting, setup, known.calibration, prompts)


Row = dict[str, Any]


def measure_theory(case: Case, speeds: list[float]) -> Iterator[Row]:
    """Yields what instant schedules and as many plain steps reach, in dB: a row a speed."""
    for speed in speeds:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            worth, planned, calls = case.instant(speed)
        few = case.score(reference_images(case.fewer(calls), case.prompts))
        yield {"speed": speed, "calls": calls, "planned": planned, "instant": worth, "fewer": few}


def measure_calibrated(case: Case, rows: list[Row], count: int, effort: float) -> Iterator[Row]:
    """Yields what schedules reach that are fitted to so many prompts, with as many calls."""
    steps, known = case.setup.call.num_inference_steps, dict[int, float]()
    for row in rows:
        if (calls := row["calls"]) not in known:
            fitted = calibrate(
                case.setup.engine, case.known[:count], steps, budget=calls / steps, effort=effort, progress=False,
                pipe_kwargs=case.setup.call.pipe_kwargs, batch_size=count, cache_dir=case.setup.cache,
            )  # fmt: skip
            known[calls] = case.score(generate(case.setup, case.prompts, fitted).images)
        yield {**row, "calibrated": known[calls], "fitted on": count, "effort": effort}


def measure_rivals(case: Case, rows: list[Row], swept: int = SWEPT) -> Iterator[Row]:
    """Yields what the best rival reaches with at most as many calls.

    Each has all its settings tried on a few calibration prompts; the three methods that are best there at a number of
    calls are run on the held-out prompts, and the best one there is told.
    """
    budgets = tuple(sorted({row["calls"] for row in rows}))
    engine = DiffusersEngine(twin(pipe_of(case.setup)), exclusive=True)
    comparing = Comparing(replace(case.setup, engine=engine), PromptSet(case.known[:swept]), budgets)
    runner = ComparisonRunner(comparing, case.prompts)
    found = dict[str, list[Tried]]()
    for name in RIVALS:
        if BASELINES[name].find_obstacle(comparing) is None:
            try:
                found[name] = runner.choose_settings(BASELINES[name], budgets)[0]
            except Exception as error:  # another's code on this model
                print(case.model, case.setting, name, f"broke: {error}"[:200], flush=True)
    best = dict[int, tuple[float, str]]()
    for calls in budgets:
        chosen = [(one.quality, name, one) for name in found if (one := pick(BASELINES[name], found[name], calls))]
        held_out = list[tuple[float, str]]()
        for _, name, one in sorted(chosen, key=lambda entry: -entry[0])[:3]:
            trial = runner.run(BASELINES[name], one.params, case.prompts)
            if runner.count_calls(trial, runner.full)[0] <= calls * 1.05:
                held_out.append((case.score(trial.images), f"{name} {brief(one.params)}"))
        best[calls] = max(held_out, default=(float("nan"), "none"))
    tried = sum(map(len, found.values()))
    for row in rows:
        rival, who = best[row["calls"]]
        about = {"rival": rival, "who": who, "settings": tried, "swept": swept, "methods": list(found)}
        yield {**row, **about}


def brief(params: Any) -> str:
    """Returns a setting in few words."""
    return " ".join(f"{name}={value}" for name, value in params.items() if not isinstance(value, (list, tuple)))[:60]


def words_of(row: Row) -> list[str]:
    """Returns a row of the table."""
    made = f"{row['calls']} of {row['steps']}" + f" (planned {row['planned']})" * (row["planned"] != row["calls"])
    lead = f"{row['instant'] - row['fewer']:+.1f}"
    more = [f"{row[name]:.1f}" if name in row else "" for name in ("instant", "fewer", "rival", "calibrated")]
    who = str(row.get("who", ""))
    return [row["model"], row["setting"], f"{row['speed']:g}x", made, *more[:2], lead, more[2], who, more[3]]


def correlations(gram: Array) -> Array:
    """Returns the correlations of outputs in a kernel, with shape (N, N)."""
    size = np.sqrt(np.diagonal(gram))
    return np.asarray(gram / size[:, None] / size)


def innovations(gram: Array) -> Array:
    """Returns how far each output from the third on is from the best forecast from the two before, in decades."""
    found = []
    for i in range(2, len(gram)):
        known = [i - 1, i - 2]
        rest = forecast_error(gram, i, known, fit_open_loop(gram, i, known, 1e-9)) / gram[i, i]
        found.append(np.log10(max(rest, 1e-9)))
    return np.array(found)


def read_sampler_of(case: Case) -> InstantRequest:
    """Returns what the run of a case is, by starting one."""
    runner = InstantRunner(1.0, read_run)
    seen: list[InstantRequest] = []

    def read(gate: Any, speed: float) -> InstantRequest:
        seen.append(read_run(gate, speed))
        return seen[0]

    runner.read = read
    case.setup.run(runner, case.prompts[:1])
    return seen[0]


def kernel_in(world: World, request: InstantRequest) -> Array:
    """Returns the inner products of a full run's outputs in a world."""
    toy = build_toy(request.sampler, [world], request.guidance, request.variance)
    outputs = np.array([toy.output(i, toy.reference[i]) for i in range(len(request.sampler))])
    return np.asarray(outputs @ outputs.T)


def kernels_of(case: Case) -> tuple[Array, list[Array]]:
    """Returns the measured kernel of a case, and those of the worlds of the prior."""
    request = read_sampler_of(case)
    measured = record(case.setup, PromptSet.of(case.known[: len(case.prompts)])).profile.kernel
    return measured, [kernel_in(world, request) for world in PRIOR]


def compare_kernels(several: list[Case], picture: str | None) -> None:
    """Prints, and draws, theory's kernels beside the measured ones."""
    table = Table("model", "setting", "correlations, rms error", "best world", "innovation, decades off", "best world")
    drawn = []
    for case in several:
        measured, worlds = kernels_of(case)
        off = [np.sqrt(np.mean((correlations(one) - correlations(measured)) ** 2)) for one in worlds]
        apart = [np.mean(np.abs(innovations(one) - innovations(measured))) for one in worlds]
        figures = (f"{np.mean(off):.3f}", f"{min(off):.3f}", f"{np.mean(apart):.2f}", f"{min(apart):.2f}")
        row = [case.model, case.setting, *figures]
        table.add_row(*row)
        print(*row, sep=" | ", flush=True)
        drawn.append((case, measured, worlds))
    Console().print(table)
    if picture:
        draw_kernels(drawn, picture)


def draw_kernels(drawn: list[tuple[Case, Array, list[Array]]], picture: str) -> None:
    """Draws correlations with the outputs of three steps, and innovations: measured, and the range of the worlds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.6 * len(drawn), 4.6), layout="constrained", dpi=110)
    axes = figure.subplots(2, len(drawn), squeeze=False, sharey="row")
    for (case, measured, worlds), (top, low) in zip(drawn, axes.T, strict=True):
        steps, last = np.arange(len(measured)), len(measured) - 1
        for at, colour in ((0, "C0"), (last // 2, "C1"), (last, "C2")):
            range_ = [correlations(one)[at] for one in worlds]
            top.fill_between(steps, np.min(range_, 0), np.max(range_, 0), color=colour, alpha=0.25, lw=0)
            top.plot(steps, correlations(measured)[at], color=colour, lw=1.2)
        range_ = [innovations(one) for one in worlds]
        low.fill_between(steps[2:], np.min(range_, 0), np.max(range_, 0), color="C7", alpha=0.3, lw=0)
        low.plot(steps[2:], innovations(measured), color="k", lw=1.2)
        top.set_title(f"{case.model}, {case.setting}", fontsize=9)
        low.set_xlabel("step")
    axes[0, 0].set_ylabel("correlation with the first,\nmiddle and last output")
    axes[1, 0].set_ylabel("innovation, decades of energy")
    figure.savefig(picture)


def print_times() -> None:
    """Prints what making a schedule costs."""
    for steps in (28, 50, 1000):
        since = time.perf_counter()
        Schedule.instant(np.linspace(1, 1 / steps, steps).tolist(), 2)
        print(f"{steps} steps at 2x: {time.perf_counter() - since:.2f} s")


def case_parser(doc: str, eval_on: int) -> argparse.ArgumentParser:
    """Returns a parser of what cases are run, and on how many held-out prompts."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(MODELS), help="demo models, and emoji128 with --emoji128")
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=SETTINGS)
    parser.add_argument("--speeds", type=float, nargs="+", default=list(SPEEDS))
    parser.add_argument("--emoji128", help="the folder of that model; its prompts lie beside it")
    parser.add_argument("--eval-on", type=int, default=eval_on)
    parser.add_argument("--out", type=Path, default=Path(os.devnull), help="a file of rows, kept as they are made")
    return parser


def main() -> None:
    """Prints the table."""
    parser = case_parser(__doc__, 8)
    parser.add_argument("--calibrate", type=int, default=0, metavar="N", help="calibrate on N prompts too")
    parser.add_argument("--effort", type=float, default=12.0, help="of that: full runs of one prompt")
    parser.add_argument("--rivals", action="store_true", help="sweep other methods too")
    parser.add_argument("--sweep-on", type=int, default=SWEPT, metavar="N", help="on N calibration prompts")
    parser.add_argument("--time", action="store_true", help="tell what making a schedule costs")
    parser.add_argument("--kernels", action="store_true", help="compare theory's kernels with the measured ones")
    parser.add_argument("--picture", help="where --kernels draws them")
    options = parser.parse_args()
    if options.time:
        print_times()
        return
    if options.kernels:
        found = (cases(model, options.emoji128, options.eval_on, options.settings) for model in options.models)
        compare_kernels([case for several in found for case in several], options.picture)
        return
    heads = ["model", "setting", "asked", "calls", "instant", "as few steps", "lead", "rival", "which", "calibrated"]
    table = Table(*heads, title=f"PSNR in dB, mean of {options.eval_on} held-out prompts")
    kept = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.exists() else []
    rows: dict[tuple[str, str], list[Row]] = {}
    for row in kept:
        rows.setdefault((row["model"], row["setting"]), []).append(row)
    for model in options.models:
        for setting in options.settings:
            known = rows.get((model, setting), [])
            wanted = (
                {"instant"} | {"rival"} & {options.rivals and "rival"} | {options.calibrate and "calibrated"} - {0}
            )
            if known and all(wanted <= row.keys() for row in known):
                continue
            for case in cases(model, options.emoji128, options.eval_on, [setting]):
                about = {
                    "model": model,
                    "setting": setting,
                    "steps": case.setup.call.num_inference_steps,
                    "prompts": options.eval_on,
                }
                known = known or [about | row for row in measure_theory(case, options.speeds)]
                if options.rivals and "rival" not in known[0]:
                    known = list(measure_rivals(case, known, options.sweep_on))
                if options.calibrate and "calibrated" not in known[0]:
                    known = list(measure_calibrated(case, known, options.calibrate, options.effort))
                rows[model, setting] = known
                options.out.write_text("".join(json.dumps(row) + "\n" for several in rows.values() for row in several))
                for row in known:
                    print(*words_of(row), sep=" | ", flush=True)
    for several in rows.values():
        for row in several:
            table.add_row(*words_of(row))
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
