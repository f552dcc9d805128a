"""What tuning gains, and what it costs: `python -m benchmarks.tune`.

At each speed a tuned schedule, the one-shot calibration, random search and simulated annealing on the final
latents (BudCache's recipe), with as many trials, by held-out prompts. Image generations and denoiser calls
are counted where they happen, full runs included. What is done is kept in a file, and not done again.
"""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from adaptcache.tuning.bench import full_images
from adaptcache.tuning.finish import Finish, winners
from adaptcache.tuning.moves import anywhere, moved
from adaptcache.tuning.proposals import Proposer
from adaptcache.tuning.race import best
from adaptcache.tuning.search import Search
from rich.console import Console
from rich.table import Table

from adaptcache.calibration.calibrate import calls_for
from adaptcache.calibration.fit import assembled, fitted
from adaptcache.engines.diffusers.attach import attach
from adaptcache.evaluation.validate import validated
from adaptcache.files import dump_json, write_atomically
from adaptcache.forecasts.extrapolate import Extrapolate
from adaptcache.policies.plan import Plan
from adaptcache.presets import resolve
from adaptcache.presets.prompts import read_prompts
from adaptcache.profiling.measure import Measurement, measure
from adaptcache.schedule.rule import Rule
from adaptcache.schedule.schedule import Schedule
from adaptcache.tuning.candidate import Candidate
from adaptcache.tuning.target import Target
from adaptcache.tuning.tune import begin
from tests.calls import Call

HOT, COLD = 0.05, 1e-5  # temperatures of BudCache on FLUX


@dataclass
class Meter:
    """Counts what runs: images begun, and denoiser calls by sample."""

    images: int = 0
    calls: int = 0

    @contextmanager
    def watching(self, pipe: Any) -> Iterator[Meter]:
        """Counts until it is left."""
        run = Call.run

        def counted(call: Call, own: Any, prompts: Sequence[Any], *rest: Any, **more: Any) -> Any:
            self.images += len(prompts)
            return run(call, own, prompts, *rest, **more)

        def called(module: Any, args: Any, kwargs: Any) -> None:
            self.calls += len(kwargs.get("hidden_states", args[0] if args else []))

        hook = pipe.transformer.register_forward_pre_hook(called, with_kwargs=True)
        Call.run = counted  # type: ignore[method-assign, assignment]
        try:
            yield self
        finally:
            Call.run = run  # type: ignore[method-assign]
            hook.remove()


class Random(Proposer):
    """Draws from anywhere: the same space, and no start."""

    def warm(self, calls: int) -> list[Candidate]:
        return []

    def propose(self, slot: int, before: Any, taken: Any, shares: Any) -> Candidate:
        rng = np.random.default_rng([self.seed, slot])
        return anywhere(next(iter(shares)), self.profile.steps, rng)


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
            other = moved(plan, steps, rng, far=rng.random() < 0.5)
        value = energy(other)
        if value < now or rng.random() < np.exp(-(value - now) / unit / heat):
            plan, now = other, value
        found = min(found, (now, plan))
    return found[1]


@dataclass
class Contest:
    """What all methods share."""

    pipe: Any
    call: Call
    prompts: Sequence[str]
    batch: int
    trials: int
    store: Store
    measurement: Measurement

    def searching(self, method: str, calls: int) -> Search:
        """Returns a search with so many calls, whose trials have a file of their own."""
        trials = self.store.folder.parent / f"{method}-{calls}-{self.trials}.db"
        return begin(
            self.pipe, self.prompts, Target(max_calls=calls), steps=self.call.steps, call=self.call.arguments,
            trials=self.trials, storage=f"sqlite:///{trials}", batch_size=self.batch, store=self.store,
        )  # fmt: skip

    def calibrate(self, calls: int) -> Schedule:
        """One shot."""
        return fitted(self.pipe, self.call, self.prompts, self.measurement, calls, batch_size=self.batch)

    def tuned(self, calls: int) -> Schedule:
        """The search that ships."""
        search = self.searching("tuned", calls)
        search.run()
        return Finish(search, None, {}).point(*winners(search)[0]).schedule

    def random(self, calls: int) -> Schedule:
        """The same trials, drawn from anywhere."""
        search = self.searching("random", calls)
        search.proposer = Random(search.proposer.profile, 0)
        search.run()
        winner = best(search.finished(), calls)
        assert winner is not None
        return Finish(search, None, {}).schedule(winner.candidate, {})

    def annealing(self, calls: int) -> Schedule:
        """Plans by the final latents of the same prompts to fit on, with our weights."""
        search = self.searching("annealing", calls)
        steps = search.proposer.profile.steps

        def energy(plan: tuple[int, ...]) -> float:
            return search.bench.rule(Candidate(plan=plan))[1] or 0.0

        plan = annealed(energy, calls, steps, self.trials, 0)
        return Finish(search, None, {}).schedule(Candidate(plan=plan), {})

    def budcache(self, calls: int) -> Schedule:
        """As published: reuse, one prompt, the final latents."""
        profile = self.measurement.profile
        times, final = tuple(map(float, profile.times)), self.measurement.runs[0].y[0][-1][:1]
        whole = Rule(policy=Plan.of(range(len(times)), times), forecast=Extrapolate(order=0))
        base = assembled(self.pipe, self.call, profile, (whole,))

        def by(plan: tuple[int, ...]) -> Schedule:
            rule = whole.model_copy(update={"policy": Plan.of(plan, times)})
            return base.model_copy(update={"rules": (rule,)})

        def energy(plan: tuple[int, ...]) -> float:
            with attach(self.pipe, by(plan)):
                latents = self.call(self.pipe, self.prompts[:1])
            return float(torch.square(latents - final).mean())

        return by(annealed(energy, calls, len(times), self.trials, 0))


METHODS = {
    "calibrate": Contest.calibrate, "tune": Contest.tuned, "random search": Contest.random,
    "annealing, our weights": Contest.annealing, "annealing, reuse (BudCache)": Contest.budcache,
}  # fmt: skip


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="emoji-flux")
    parser.add_argument(
        "--prompts", help="a prompt set instead of the model's own: emoji-varied has 80 to fit on"
    )
    parser.add_argument("--speeds", type=float, nargs="+", default=[2.8, 5.6, 4, 2])
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--eval-on", type=int, default=32)
    parser.add_argument("--out", type=Path, default=Path("build/tune-benchmark"))
    options = parser.parse_args()
    preset, store = resolve(options.model), Store(options.out / "runs")
    known, kept = read_prompts(options.prompts or preset.prompts), options.out / "results.json"
    pipe, call = preset.load_pipeline(), Call(preset.steps, preset.call)
    pipe.set_progress_bar_config(disable=True)
    results: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}

    def once(key: str, work: Callable[[], dict[str, float]]) -> dict[str, float]:
        if key not in results:
            results[key] = work()
            write_atomically(kept, dump_json(results))
            print(key, results[key], flush=True)
        return dict(results[key])

    def profiled() -> dict[str, float]:
        with Meter().watching(pipe) as meter:
            measure(pipe, call, known.calibration, batch_size=preset.batch_size, store=store)
            half = (len(known.calibration) + 1) // 2
            full_images(pipe, call, known.calibration[half:], half, preset.batch_size, store)
        return {"images": meter.images, "calls": meter.calls}

    once("full runs", profiled)
    measurement = measure(pipe, call, known.calibration, batch_size=preset.batch_size, store=store)
    contest = Contest(pipe, call, known.calibration, preset.batch_size, options.trials, store, measurement)

    def entered(method: str, calls: int) -> dict[str, float]:
        with Meter().watching(pipe) as meter:
            schedule = METHODS[method](contest, calls)
        checked = validated(
            pipe, call, known.held_out[: options.eval_on], schedule, batch_size=preset.batch_size,
            first=len(known.calibration), store=store,
        )  # fmt: skip
        assert checked.evidence is not None
        return {**checked.evidence.psnr, "images": meter.images, "calls": meter.calls}

    rows = {}
    for speed in options.speeds:
        calls = calls_for(call.steps, speed=speed)
        for method in METHODS:
            work = functools.partial(entered, method, calls)
            rows[speed, method] = once(f"{method} {calls} {options.trials}", work)
    show(rows, results["full runs"], call.steps, options.trials)


def show(
    rows: dict[tuple[float, str], dict[str, float]], shared: dict[str, float], steps: int, trials: int
) -> None:
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
