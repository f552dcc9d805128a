"""Comparisons on a tiny real pipeline: every method makes the calls it says, from the same noise."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch
from conftest import CALL, STEPS, embedded, tiny_flux

from adaptcache import compare as module
from adaptcache.compare.peers import PEERS, Case
from adaptcache.compare.peers.magcache import followed
from adaptcache.compare.peers.taylorseer import computed
from adaptcache.compare.trial import Trial, latent_error, run
from adaptcache.compare.work import BlockCounter, blocks_of
from adaptcache.profiling.record import twin

PROMPTS = embedded(2)


@pytest.fixture
def case() -> Case:
    pipe = tiny_flux(num_layers=2, num_single_layers=2)
    return Case(twin(pipe), CALL, (4, 2), PROMPTS[:1], {4: [0, 1, 3, 5], 2: [0, 3]})


@pytest.fixture
def full(case: Case) -> Trial:
    return run(case.pipe, CALL, PROMPTS[:1])


def by(case: Case, name: str, knobs: Any) -> Trial:
    with PEERS[name].applied(case, knobs) as ready:
        return run(case.pipe, ready.call, PROMPTS[:1], ready.visitor)


def calls(trial: Trial, full: Trial) -> float:
    return STEPS * trial.work / full.work


def peers(*names: str) -> list[Any]:
    here = importlib.util.find_spec("cache_dit") is not None
    skip = pytest.mark.skipif(not here, reason="cache-dit is not installed")
    return [pytest.param(n, marks=skip if PEERS[n].needs == "cache-dit" else ()) for n in names]


@pytest.mark.parametrize("name", peers(*PEERS))
def test_every_method_starts_from_the_same_noise_and_leaves_the_pipeline_as_it_was(
    case: Case, full: Trial, name: str
) -> None:
    for knobs in PEERS[name].settings(case)[:2]:
        made = by(case, name, knobs)
        assert all(torch.equal(a, b) for a, b in zip(made.noise, full.noise, strict=True))
        assert calls(made, full) <= STEPS + 1e-9
    again = run(case.pipe, CALL, PROMPTS[:1])
    assert torch.equal(again.latents[0], full.latents[0]) and again.work == full.work


@pytest.mark.parametrize("name", ["fewer steps", "AB2", "UniPC", "DPM++ 2M"])
def test_samplers_make_one_call_a_step(case: Case, full: Trial, name: str) -> None:
    for knobs in PEERS[name].settings(case):
        made = by(case, name, knobs)
        assert made.steps == knobs.get("steps", len(knobs.get("plan", ())))
        assert calls(made, full) == pytest.approx(made.steps)


def test_magcache_computes_the_steps_its_rule_says_on_paper(case: Case, full: Trial) -> None:
    settings = PEERS["MagCache"].settings(case)
    assert settings
    for knobs in settings:
        plan = followed(
            knobs["mag_ratios"], knobs["threshold"], knobs["max_skip_steps"], knobs["retention_ratio"]
        )
        assert calls(by(case, "MagCache", knobs), full) == pytest.approx(len(plan))


def test_taylorseer_lite_computes_the_steps_its_rule_says_on_paper(case: Case, full: Trial) -> None:
    for knobs in PEERS["TaylorSeer lite"].settings(case):
        plan = computed(STEPS, knobs["cache_interval"], knobs["disable_cache_before_step"])
        assert calls(by(case, "TaylorSeer lite", knobs), full) == pytest.approx(len(plan))


def test_first_block_cache_with_a_wide_threshold_computes_one_block_a_step(case: Case, full: Trial) -> None:
    with BlockCounter(case.pipe) as counter:
        case.call(case.pipe, PROMPTS[:1])
    made = by(case, "FirstBlockCache", {"threshold": 1e9})
    assert full.work / STEPS < made.work < full.work / 2  # one whole call, and the first block of the others
    assert counter.work == full.work and len(blocks_of(case.pipe.transformer)) == 4


def test_a_line_through_two_outputs_is_one_step_of_adams_bashforth(case: Case) -> None:
    """On an even grid of the call's own: x + h (3 u1 - u0) / 2."""
    from dataclasses import replace

    from adaptcache.compare.peers.samplers import Line
    from adaptcache.gate import Update

    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    class Watched(Line):
        def update(self, update: Update) -> torch.Tensor:
            if update.computed:
                seen.append((update.move.x.clone(), update.move.u.clone()))
            return super().update(update)

    made = run(case.pipe, replace(CALL, steps=8), PROMPTS[:1], Watched([0, 2, 4, 6]))
    case.pipe.scheduler.set_timesteps(8, sigmas=[1 - i / 8 for i in range(8)])
    s = case.pipe.scheduler.sigmas[[0, 2, 4, 6, 8]]
    (_, before), (x, u) = seen[-2:]
    slope = (u - before) / (s[3] - s[2])
    last = x + (s[4] - s[3]) * (u + (s[4] - s[3]) / 2 * slope)
    assert torch.allclose(made.latents[0], last, atol=1e-5)


def test_a_missing_package_is_a_row_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(PEERS["DBCache"]), "needs", "no-such-package")
    result = module.compare(tiny_flux(), CALL, embedded(2), embedded(1, seed=5), [0.5], methods=["DBCache"])
    (line,) = [line for line in result.lines if line.method == "DBCache"]
    assert "pip install no-such-package" in line.note and line.psnr is None


def test_our_schedule_and_its_peers_stay_at_or_below_the_budget() -> None:
    result = module.compare(
        tiny_flux(), CALL, embedded(3), embedded(2, seed=5), [0.5],
        methods=["adaptcache", "fewer steps", "MagCache"], fit_batch=3, sweep_on=1,
    )  # fmt: skip
    lines = {line.method: line for line in result.lines}
    assert set(lines) == {"full run", "adaptcache", "fewer steps", "MagCache"}
    assert lines["full run"].calls == STEPS and lines["full run"].latent == 0
    assert all(
        line.calls is not None and line.calls <= STEPS / 2 for n, line in lines.items() if n != "full run"
    )
    assert lines["adaptcache"].blocks == pytest.approx(lines["adaptcache"].calls * 2)
    assert len(result.images["MagCache 0.5"]) == 2
    evidence = result.schedules[0.5].evidence
    assert evidence and evidence.psnr == lines["adaptcache"].psnr and evidence.n == 2
    assert result.data()["lines"][0]["method"] == "full run"


def test_unknown_methods_are_refused_with_those_there_are() -> None:
    with pytest.raises(LookupError, match="no method TeaCash; there are adaptcache, fewer steps"):
        module.methods_of(["TeaCash"])


def test_latent_error_is_relative_to_the_length_of_the_full_run(full: Trial) -> None:
    from dataclasses import replace

    off = replace(full, latents=[1.1 * value for value in full.latents])
    assert latent_error(off, full) == pytest.approx(0.1, rel=1e-4)
