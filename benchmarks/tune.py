"""What tuning gains, and what it costs: `python -m benchmarks.tune`.

At each speed a tuned schedule, the one-shot calibration, random search and simulated annealing on the final
latents (BudCache's recipe), with as many trials, by held-out prompts. Image generations and denoiser calls
are counted where they happen, full runs included. What is done is kept in a file, and not done again.
"""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from adaptcache.cache import Cache
from adaptcache.calibration.calibrate import calls_for
from adaptcache.calibration.fit import build_schedule, fit_schedule
from adaptcache.engines.diffusers.engine import DiffusersEngine
from adaptcache.evaluation.generate import reference_images
from adaptcache.evaluation.validate import validate
from adaptcache.files import dump_json, write_atomically
from adaptcache.fitting.plan import move_call
from adaptcache.forecasts.extrapolate import Extrapolate
from adaptcache.hooks import SchedulerStep, StepHook
from adaptcache.policies.plan import Plan
from adaptcache.presets import read_prompts, resolve
from adaptcache.profiling.measure import measure
from adaptcache.runs import Job, Outcome, PipelineCall, PromptSet, Setup
from adaptcache.runtime.runner import Runner
from adaptcache.schedule.rule import Rule
from adaptcache.schedule.schedule import Schedule
from adaptcache.tuning.evaluator import SPACE, Candidate, leaders
from adaptcache.tuning.front import conclude
from adaptcache.tuning.study import MoveSampler, Search
from adaptcache.tuning.tune import begin

HOT, COLD = 0.05, 1e-5  # temperatures of BudCache on FLUX


class CountingEngine(DiffusersEngine):
    """Counts what runs: images begun, and denoiser calls by sample."""

    images, calls = 0, 0

    def run(self, hook: StepHook, job: Job) -> Outcome:
        outcome = super().run(hook, job)
        self.images += len(job.prompts)
        self.calls += len(job.prompts) * sum(sum(branches) for branches in outcome.calls)
        return outcome


class RandomSampler(MoveSampler):
    """Draws from anywhere: the same space, and no start."""

    def propose(self, number: int, trials: Any) -> Candidate:
        rng, (calls,) = np.random.default_rng([self.seed, number]), self.choices
        plan = 1 + rng.choice(self.profile.steps - 1, size=calls - 1, replace=False)
        drawn = {name: SPACE[name][rng.integers(len(SPACE[name]))] for name in ("history", "features", "ridge")}
        return Candidate((0, *sorted(map(int, plan))), **drawn)


class LastLatents(Runner):
    """Runs by a schedule, and keeps where the run lands."""

    def on_step_end(self, step: SchedulerStep, latents: Any) -> None:
        super().on_step_end(step, latents)
        self.latents = latents.cpu()


def annealed(
    energy: Callable[[tuple[int, ...]], float], calls: int, steps: int, trials: int, seed: int
) -> tuple[int, ...]:
    """Returns the best plan of simulated annealing: BudCache's moves, temperatures and forced first calls.

    The loss is taken relative to the first one's, as ours is no squared error of 16-bit latents.
    """
    rng, forced = np.random.default_rng(seed), max(1, calls // 4)

    def start() -> tuple[int, ...]:
        free = forced + rng.choice(steps - forced, calls - forced, replace=False)
        return (*range(forced), *sorted(map(int, free)))

    plan = start()
    unit = now = energy(plan)
    found = (now, plan)
    for trial in range(1, trials):
        heat = HOT * (COLD / HOT) ** (trial / max(1, trials - 1))
        other = plan
        while other == plan or other[:forced] != plan[:forced]:
            other = move_call(plan, steps, rng, far=rng.random() < 0.5)
        value = energy(other)
        if value < now or rng.random() < np.exp(-(value - now) / unit / heat):
            plan, now = other, value
        found = min(found, (now, plan))
    return found[1]


@dataclass
class Contest:
    """What all methods share."""

    setup: Setup
    prompts: PromptSet
    trials: int

    def __post_init__(self) -> None:
        self.measurement = measure(self.setup, self.prompts)

    def searching(self, method: str, calls: int) -> Search:
        """Returns a search with so many calls, whose trials have a file of their own."""
        assert self.setup.cache
        trials = self.setup.cache.folder.parent / f"{method}-{calls}-{self.trials}.db"
        own = self.setup
        return begin(
            own.engine, self.prompts, own.call.num_inference_steps, max_calls=calls, trials=self.trials,
            storage=f"sqlite:///{trials}", batch_size=own.batch_size, cache=own.cache, progress=False,
            pipe_kwargs=own.call.pipe_kwargs, resume=trials.exists(),
        )  # fmt: skip

    def finish(self, search: Search, candidate: Candidate) -> Schedule:
        """Returns the schedule of a candidate that is fitted on all prompts."""
        rule, _ = search.evaluator.fit(candidate, True)
        return search.evaluator.full.model_copy(update={"rules": (rule,)})

    def calibrate(self, calls: int) -> Schedule:
        """One shot."""
        return fit_schedule(self.measurement, calls)

    def tuned(self, calls: int) -> Schedule:
        """The search that ships."""
        search = self.searching("tuned", calls)
        search.run()
        return conclude(search).schedule

    def random(self, calls: int) -> Schedule:
        """The same trials, drawn from anywhere."""
        search = self.searching("random", calls)
        own = search.sampler
        sampler = RandomSampler(own.find, own.profile, own.target, own.choices, own.trials, own.seed)
        search.sampler = search.study.sampler = sampler
        search.run()
        best = leaders(search.finished, calls)[0]
        return self.finish(search, Candidate.suggest(best, search.steps))

    def annealing(self, calls: int) -> Schedule:
        """Plans by the final latents of the same prompts to fit on, with our weights."""
        search = self.searching("annealing", calls)
        plan = annealed(lambda plan: search.evaluator.fit(Candidate(plan))[1], calls, search.steps, self.trials, 0)
        return self.finish(search, Candidate(plan))

    def budcache(self, calls: int) -> Schedule:
        """As published: reuse, one prompt, the final latents."""
        profile, one = self.measurement.profile, self.prompts[:1]
        times, final = tuple(map(float, profile.times)), self.measurement.runs[0].y[0][-1][:1]

        def by(plan: tuple[int, ...]) -> Schedule:
            return base.model_copy(update={"rules": (Rule(policy=Plan.of(plan, times), forecast=reuse),)})

        def energy(plan: tuple[int, ...]) -> float:
            hook = LastLatents(by(plan))
            self.setup.run(hook, one)
            return float((hook.latents - final).square().mean())

        reuse = Extrapolate(order=0)
        every = Rule(policy=Plan.of(range(len(times)), times), forecast=reuse)
        base = build_schedule(self.setup, profile, (every,))
        return by(annealed(energy, calls, len(times), self.trials, 0))


METHODS = {
    "calibrate": Contest.calibrate, "tune": Contest.tuned, "random search": Contest.random,
    "annealing, our weights": Contest.annealing, "annealing, reuse (BudCache)": Contest.budcache,
}  # fmt: skip


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="emoji-flux-32")
    parser.add_argument("--prompts", help="a prompt set instead of the model's own: emoji-varied has 80 to fit on")
    parser.add_argument("--speeds", type=float, nargs="+", default=[2.8, 5.6, 4, 2])
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--fit-on", type=int, default=1_000)
    parser.add_argument("--eval-on", type=int, default=32)
    parser.add_argument("--out", type=Path, default=Path("build/tune-benchmark"))
    options = parser.parse_args()
    preset, kept = resolve(options.model), options.out / "results.json"
    known = read_prompts(options.prompts or preset.prompts)
    prompts = PromptSet(known.calibration[: options.fit_on])
    held_out = PromptSet(known.held_out[: options.eval_on], len(prompts))
    pipe = preset.load_pipeline()
    pipe.set_progress_bar_config(disable=True)
    engine, call = CountingEngine(pipe), PipelineCall(preset.steps, preset.call)
    setup = Setup(engine, call, preset.batch_size, Cache(options.out / "runs"))
    results: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}

    def once(key: str, work: Callable[[], Schedule | None]) -> dict[str, float]:
        if key not in results:
            engine.images = engine.calls = 0
            schedule = work()
            counted = {"images": engine.images, "calls": engine.calls}
            seen = validate(setup, held_out, schedule).evidence if schedule else None
            results[key] = counted | (seen.psnr if seen else {})
            write_atomically(kept, dump_json(results))
            print(key, results[key], flush=True)
        return dict(results[key])

    def profiled() -> None:
        measure(setup, prompts)
        reference_images(setup, prompts[(len(prompts) + 1) // 2 :])

    once("full runs", profiled)
    contest, rows = Contest(setup, prompts, options.trials), {}
    for speed in options.speeds:
        calls = calls_for(preset.steps, speed=speed)
        for method in METHODS:
            work = functools.partial(METHODS[method], contest, calls)
            rows[speed, method] = once(f"{method} {calls} {options.trials}", work)
    show(rows, results["full runs"], preset.steps, options.trials)


def show(rows: dict[tuple[float, str], dict[str, float]], shared: dict[str, float], steps: int, trials: int) -> None:
    """Prints the table; every method's cost includes the full runs that it starts from."""
    table = Table("speed", "method", "PSNR dB", "5th pct", "over calibrate", "images", "of full runs",
                  title=f"{trials} trials")  # fmt: skip
    for (speed, method), row in sorted(rows.items(), key=lambda item: item[0][0]):
        start = rows[speed, "calibrate"]["mean"]
        table.add_row(
            f"{speed:g}", method, f"{row['mean']:.2f}", f"{row['p05']:.2f}", f"{row['mean'] - start:+.2f}",
            f"{row['images'] + shared['images']:.0f}", f"{(row['calls'] + shared['calls']) / steps:.0f}",
        )  # fmt: skip
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
