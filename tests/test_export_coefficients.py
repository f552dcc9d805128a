"""TeaCache's numbers travel between engines, and come back as they were."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from adaptcache.engines.formats import FORMATS, export
from adaptcache.engines.formats.mask import computed_steps
from adaptcache.engines.formats.read import read_schedule
from adaptcache.errors import ScheduleError
from adaptcache.policies.polynomial import Polynomial
from adaptcache.schedule.rule import Rule
from adaptcache.schedule.schedule import Schedule

COEFFICIENTS = [name for name, form in FORMATS.items() if form.write_polynomial]
WITHOUT = [name for name, form in FORMATS.items() if form.write and not form.write_polynomial]
FLUX = Schedule.of("teacache", model="flux", threshold=0.4)


@pytest.mark.parametrize("engine", COEFFICIENTS)
def test_the_published_polynomial_of_flux_comes_back_from_every_engine(engine: str, tmp_path: Path) -> None:
    exported = export(FLUX, engine)
    back = read_schedule(exported.save(tmp_path / f"x{exported.ending}")).rules[0].policy
    assert back.coefficients == FLUX.rules[0].policy.coefficients and back.threshold == 0.4
    assert exported.plan is None and "{path}" not in exported.explained("x")


def test_short_polynomials_are_filled_up_and_long_ones_refused() -> None:
    def of(*coefficients: float, **more: object) -> Schedule:
        policy = Polynomial(coefficients=coefficients, threshold=0.2, on="modulated", **more)
        rule = Rule(site="blocks", policy=policy, forecast=FLUX.rules[0].forecast)
        return Schedule(name="mine", rules=(rule,))

    config = yaml.safe_load(export(of(2.0, 1.0), "tensorrt-llm").text)["cache_config"]
    assert config["coefficients"] == [0, 0, 0, 2.0, 1.0]
    assert "0.1 to 0.3" in export(of(2.0, 1.0, clamp=(0.1, 0.3)), "vllm-omni").lost[-1]
    with pytest.raises(ScheduleError, match="takes 5 coefficients, mine has 6"):
        export(of(*range(6)), "lightx2v")


def test_engines_without_a_polynomial_refuse_one_and_name_those_that_have() -> None:
    for engine in WITHOUT:
        with pytest.raises(ScheduleError, match=rf"which {engine} does not know; vllm-omni, tensorrt-llm, "):
            export(FLUX, engine)


def test_a_polynomial_of_the_latents_is_not_passed_off_as_one_of_the_modulated_input() -> None:
    policy = FLUX.rules[0].policy.model_copy(update={"on": "input"})
    rule = FLUX.rules[0].model_copy(update={"policy": policy})
    with pytest.raises(ScheduleError, match="looks at the input, that of vllm-omni at the first block's"):
        export(FLUX.model_copy(update={"rules": (rule,)}), "vllm-omni")


def test_magnitudes_become_the_mask_that_they_are() -> None:
    magcache = Schedule.of("magcache", model="flux")
    exported = export(magcache, "cache-dit", steps=28)
    assert computed_steps(magcache, times=tuple(1 - i / 28 for i in range(28))) == [
        i for i, step in enumerate(exported.plan.computed) if step
    ]
    with pytest.raises(ScheduleError, match=r"for any number of steps; say for how many"):
        export(magcache, "cache-dit")


def test_more_files_of_others_are_read_as_they_mean_it(tmp_path: Path) -> None:
    path = tmp_path / "smooth.json"
    path.write_text(json.dumps({"attn1": [1, 0, 0, 1], "ff": [1, 0, 1, 0]}))
    rules = read_schedule(path).rules
    assert {rule.site: rule.policy.compute_steps for rule in rules} == {
        "attention": (True, False, False, True),
        "mlp": (True, False, True, False),
    }
    path = tmp_path / "flags.txt"
    path.write_text('sd --cache-mode cache-dit --scm-mask "1,0,1"')
    assert read_schedule(path).rules[0].policy.compute_steps == (True, False, True)
