"""What caching itself costs: `python -m benchmarks.overhead --help`.

Prints, for FLUX denoisers with random weights: the time of a computed step, of a skipped one (a weighted
sum of four outputs and two latents, and the pipeline around it) and of attach; and at some budgets, with skipped steps
and with these joined, the speed-up that is realised over the ideal one, which is all calls over calls made.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

import adaptcache
from adaptcache.engines.diffusers.identity import fingerprint
from adaptcache.forecasts.matched import Matched
from adaptcache.policies.plan import Plan
from adaptcache.runs import synchronize
from adaptcache.schedule.format import Grid
from adaptcache.schedule.rule import Rule
from adaptcache.schedule.schedule import Schedule

STEPS = 28
BUDGETS = (0.5, 0.36, 0.25)
HISTORY = 4
CLOCK = time.perf_counter


@dataclass(frozen=True)
class Size:
    """A denoiser and the images it makes.

    Arguments:
        heads: Attention heads, of 128 channels each (32 in the demo model).
        layers: Double and single blocks.
        pixels: Height and width, at 16 pixels a token.
        text: Tokens of text.
    """

    heads: int
    layers: tuple[int, int]
    pixels: int
    text: int
    channels: int = 64
    head: int = 128


SIZES = {
    "demo": Size(heads=5, layers=(3, 6), pixels=128, text=32, channels=16, head=32),
    "large": Size(heads=8, layers=(3, 6), pixels=512, text=128),
    "flux-dev": Size(heads=24, layers=(19, 38), pixels=1024, text=512),
}


def pipeline(size: Size, device: str, dtype: torch.dtype) -> tuple[FluxPipeline, dict[str, Any]]:
    """Returns a pipeline with random weights, and how it is called."""
    torch.manual_seed(0)
    axes = {32: (4, 14, 14), 128: (16, 56, 56)}[size.head]
    torch.set_default_dtype(dtype)  # 12 B parameters in float32 leave no room on a card of 80 GB
    with torch.device(device):
        transformer = FluxTransformer2DModel(
            in_channels=size.channels, num_layers=size.layers[0], num_single_layers=size.layers[1],
            attention_head_dim=size.head, num_attention_heads=size.heads,
            joint_attention_dim=size.heads * size.head, pooled_projection_dim=128, guidance_embeds=True,
            axes_dims_rope=axes,
        )  # fmt: skip
    torch.set_default_dtype(torch.float32)
    transformer = transformer.to(dtype).eval()
    names = ("vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    pipe = FluxPipeline(scheduler=scheduler, transformer=transformer, **dict.fromkeys(names))
    pipe.set_progress_bar_config(disable=True)
    text = torch.randn(1, size.text, size.heads * size.head, device=device, dtype=dtype)
    call = {
        "prompt_embeds": text, "pooled_prompt_embeds": torch.randn(1, 128, device=device, dtype=dtype),
        "height": size.pixels, "width": size.pixels, "num_inference_steps": STEPS, "output_type": "latent",
    }  # fmt: skip
    return pipe, call


def run_seconds(pipe: Any, call: dict[str, Any]) -> float:
    """Returns the seconds of a run."""
    since = CLOCK()
    pipe(**call)
    synchronize()
    return CLOCK() - since


def step_seconds(pipe: Any, call: dict[str, Any]) -> list[float]:
    """Returns the seconds of each step after the first, in a run that waits for the device after each."""
    marks = []

    def mark(_: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        synchronize()
        marks.append(CLOCK())
        return tensors

    pipe(**call, callback_on_step_end=mark)
    return [b - a for a, b in itertools.pairwise(marks)]


def by_hand(pipe: Any, call: dict[str, Any], budget: float) -> Schedule:
    """Returns a schedule with weights of no meaning: they cost what fitted ones cost."""
    pipe(**call | {"num_inference_steps": STEPS})
    times = tuple(float(t) / 1000 for t in pipe.scheduler.timesteps)
    calls = round(budget * STEPS)
    steps = sorted({round(k * STEPS / calls) for k in range(calls)})
    table = []
    for i in range(STEPS):
        known = min(HISTORY, sum(step < i for step in steps))
        table.append(() if i in steps else (1 / known,) * known + (0.01, 0.01))
    forecast = Matched(history=HISTORY, table=((tuple(table),),))
    grid = Grid(scheduler=type(pipe.scheduler).__name__, times=times)
    rule = Rule(policy=Plan.of(steps, times), forecast=forecast)
    return Schedule(name=f"{budget:g}", denoiser=fingerprint(pipe), grid=grid, rules=(rule,))


class Denoising:
    """Counts the seconds inside of the denoiser, while it is entered."""

    def __init__(self, denoiser: Any) -> None:
        self.denoiser, self.forward, self.seconds = denoiser, denoiser.forward, 0.0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        since = CLOCK()
        output = self.forward(*args, **kwargs)
        self.seconds += CLOCK() - since
        return output

    def __enter__(self) -> Denoising:
        self.denoiser.forward = self
        return self

    def __exit__(self, *_: Any) -> None:
        del self.denoiser.forward


def outside(name: str, pipe: Any, call: dict[str, Any], budget: float, repeats: int) -> None:
    """Prints the work outside of the denoiser, which no schedule can skip, in full and cached runs.

    What a full run does there bounds the speed-up; what a cached run does there beyond it is ours.
    """
    schedule = by_hand(pipe, call, budget)
    calls, inside = len(planned(schedule)), list[float]()
    rest: dict[bool, list[float]] = {False: [], True: []}
    for cached in [False, True] * repeats:
        with (
            adaptcache.attach(pipe, schedule) if cached else nullcontext(),
            Denoising(pipe.transformer) as spent,
        ):
            since = CLOCK()
            pipe(**call)
            rest[cached].append(CLOCK() - since - spent.seconds)
        inside.append(spent.seconds / (calls if cached else STEPS))
    step, full, ours = statistics.median(inside), *(statistics.median(rest[key]) for key in (False, True))
    bound = (STEPS * step + full) / (calls * step + full) * calls / STEPS
    real = (STEPS * step + full) / (calls * step + ours) * calls / STEPS
    print(f"\n{name}, outside of the denoiser at budget {budget:g}, median of {repeats} runs, {CLOCK.__name__}")
    print(f"  a call        {step * 1e3:12.2f} ms")
    print(f"  a full run    {full * 1e3:12.2f} ms besides, so at most {bound:.2%} of the ideal speed-up")
    print(f"  a cached run  {ours * 1e3:12.2f} ms besides: {real:.2%} of the ideal")


def planned(schedule: Schedule) -> list[int]:
    """Returns the steps that are computed."""
    return schedule.steps()


def report(name: str, pipe: Any, call: dict[str, Any], repeats: int) -> None:
    """Measures one denoiser, full and cached runs in turn, and prints a table."""
    schedules = [by_hand(pipe, call, budget) for budget in BUDGETS]
    schedules += [schedule.collapse() for schedule in schedules]
    full, computed, attaching = [], [], []
    cached: dict[str, list[float]] = {s.name: [] for s in schedules}
    skipped: list[float] = []
    run_seconds(pipe, call)  # warms up
    for _ in range(repeats):
        full.append(run_seconds(pipe, call))
        computed += step_seconds(pipe, call)
        for schedule in schedules:
            since = CLOCK()
            handle = adaptcache.attach(pipe, schedule)
            attaching.append(CLOCK() - since)
            cached[schedule.name].append(run_seconds(pipe, call))
            steps = step_seconds(pipe, call)
            made = handle.report().calls
            handle.close()
            skipped += [s for s, branches in zip(steps, made[1:], strict=True) if not any(branches)]
    step, skip, attach = map(statistics.median, (computed, skipped, attaching))
    millions = sum(p.numel() for p in pipe.transformer.parameters()) / 1e6
    print(f"\n{name}: {millions:.0f} M parameters, {STEPS} steps, median of {repeats} runs, {CLOCK.__name__}")
    print(f"  computed step {step * 1e3:12.2f} ms")
    print(f"  skipped step  {skip * 1e3:12.2f} ms {skip / step:8.2%} of a computed one")
    print(f"  attach        {attach * 1e3:12.2f} ms {attach / step:8.2%}")
    for schedule in schedules:
        ideal = STEPS / len(planned(schedule))
        real = statistics.median(full) / statistics.median(cached[schedule.name])
        print(f"  budget {schedule.name:>11} {real:11.3f} x of {ideal:.3f} x, {real / ideal:8.2%} of the ideal")


def main() -> None:
    """Reads the command line and reports each model."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", nargs="+", choices=SIZES, default=["demo", "large"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--compile", nargs="?", const="default", choices=("default", "reduce-overhead", "blocks"),
        help="compile the denoiser as a whole, with CUDA graphs (reduce-overhead), or its blocks",
    )  # fmt: skip
    parser.add_argument(
        "--cpu-time", action="store_true", help="split the work of a CPU into the denoiser's and the rest"
    )
    arguments = parser.parse_args()
    if arguments.cpu_time:
        global CLOCK
        CLOCK = time.process_time
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    for name in arguments.model:
        pipe, call = pipeline(SIZES[name], device, dtype)
        if arguments.compile:
            name += f", compiled ({arguments.compile})"
            if arguments.compile == "blocks":
                pipe.transformer.compile_repeated_blocks()
            else:
                pipe.transformer.compile(mode=arguments.compile)
        with torch.inference_mode():
            if arguments.cpu_time:
                for budget in BUDGETS:
                    outside(name, pipe, call, budget, arguments.repeats)
            else:
                report(name, pipe, call, arguments.repeats)


if __name__ == "__main__":
    main()
