"""A certificate speaks of new subjects: what was seen before, or the same one again, shows nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from test_gears import FIT, STEPS
from test_gears import HELD_OUT as GEAR_PROMPTS

import adaptcache
from adaptcache.evaluation.certify import QualityTarget, certify, upper_bound
from adaptcache.presets.prompts import read_prompts
from adaptcache.schedule.schedule import Schedule
from benchmarks.certificates import false_share
from tests.pipelines.setup import noise
from tests.pipelines.table import built, counted
from tests.toy import PROMPTS, Pipe

CERTIFIED: dict[str, Any] = {"num_inference_steps": 8, "budget": 0.5, "min_psnr": 1.0, "certify": True}
NEW = ["x" * length for length in range(1, 61)]
SAME = "(?i)same|twice|again|repeat|distinct"


def refused(held_out: list[Any], pipe: Any = None, prompts: Any = PROMPTS, **changes: Any) -> None:
    """It is refused, with a sentence of the held-out prompts, before any run."""
    pipe = pipe or Pipe()
    with counted(pipe) as calls, pytest.raises(ValueError, match=SAME):
        adaptcache.calibrate(pipe, prompts, eval_prompts=held_out, **{**CERTIFIED, **changes})
    assert not calls


# New prompts


def test_one_prompt_many_times_certifies_nothing() -> None:
    refused(["one and the same"] * 60)


def test_a_held_out_prompt_that_comes_twice_certifies_nothing() -> None:
    refused([*NEW, NEW[0]])


def test_prompts_that_were_calibrated_on_certify_nothing() -> None:
    refused([*NEW, PROMPTS[1]])


def test_a_prompt_that_differs_in_case_or_spaces_alone_certifies_nothing() -> None:
    refused([*NEW, PROMPTS[2].upper().replace(" ", "  ")])


def test_gears_are_not_certified_on_what_they_were_calibrated_on() -> None:
    refused([*NEW, PROMPTS[1]], budget=None, gears=(0.25, 0.5))


def test_a_text_and_the_same_text_as_an_argument_are_one_prompt() -> None:
    refused([*NEW, {"prompt": PROMPTS[3]}])
    refused([*NEW, {"prompt": " X  "}])


def test_tensors_count_by_their_values() -> None:
    setup = built("Flux")
    rows = [{name: noise(7 + k, *value.shape) for name, value in setup.prompts[0].items()} for k in range(60)]
    again = {name: value.clone() for name, value in setup.prompts[1].items()}
    refused([*rows, again], setup.pipe, setup.prompts[:2], pipe_kwargs=setup.call)


def test_without_a_certificate_the_same_prompts_may_be_looked_at() -> None:
    how = {"num_inference_steps": 8, "budget": 0.5}
    assert adaptcache.calibrate(Pipe(), PROMPTS, eval_prompts=[PROMPTS[0]] * 2, **how).evidence.n == 2


# Subjects


def test_a_subject_counts_once_by_the_worst_of_its_prompts() -> None:
    values = np.full((1, 180), 50.0)
    values[0, [4, 5]] = 30.0  # two prompts of one subject
    groups = [f"subject {k // 3}" for k in range(180)]
    alone, together = (certify(values, QualityTarget(40, 0.1), groups=some) for some in ((), groups))
    assert (alone.n, alone.failures, alone.unit) == (180, 2, None)
    assert (together.n, together.failures, together.unit) == (60, 1, "subjects")
    assert together.upper == upper_bound(1, 60, 0.95) > alone.upper
    assert "1 of 60 subjects did, of held-out prompts" in together.sentence
    assert "at most 10 % of subjects fall below 40 dB, by the worst of their prompts" in together.sentence


def test_subjects_need_not_stand_together_and_settings_share_them() -> None:
    rng = np.random.default_rng(0)
    values, groups = rng.normal(42, 2, (3, 240)), [int(k) for k in rng.permutation(np.arange(240) % 80)]
    found = certify(values, QualityTarget(35, 0.2), groups=groups)
    worst = np.stack([[values[s, np.array(groups) == g].min() for g in range(80)] for s in range(3)])
    assert found.model_copy(update={"unit": None}) == certify(worst, QualityTarget(35, 0.2))
    order = rng.permutation(240)
    assert certify(values[:, order], QualityTarget(35, 0.2), groups=[groups[k] for k in order]) == found


def test_as_many_subjects_as_prompts_change_nothing_but_the_word() -> None:
    values, target = np.random.default_rng(1).normal(42, 2, (2, 70)), QualityTarget(35, 0.1)
    plain = certify(values, target)
    assert certify(values, target, groups=range(70)) == plain.model_copy(update={"unit": "subjects"})


@pytest.mark.parametrize("groups", [["a"], ["a"] * 4])
def test_each_prompt_has_one_subject(groups: list[str]) -> None:
    with pytest.raises(ValueError, match=f"{len(groups)} groups for 3 prompts"):
        certify(np.zeros((1, 3)), QualityTarget(40), groups=groups)


def test_too_few_subjects_are_refused_before_any_run_however_many_prompts_vary_them() -> None:
    pipe = Pipe()
    groups = [f"subject {k // 2}" for k in range(60)]
    with (
        counted(pipe) as calls,
        pytest.raises(ValueError, match=r"30 held-out subjects cannot show.*59 are the least"),
    ):
        adaptcache.calibrate(pipe, PROMPTS, eval_prompts=NEW, groups=groups, **CERTIFIED)
    assert not calls


@pytest.mark.parametrize("more", [{"budget": 0.67}, {"gears": (0.34, 0.67)}], ids=["one plan", "gears"])
def test_a_schedule_is_certified_by_subjects(more: dict[str, Any], tmp_path) -> None:
    made = adaptcache.calibrate(
        Pipe(), FIT, STEPS, eval_prompts=GEAR_PROMPTS, groups=[k // 2 for k in range(16)], min_psnr=10.0,
        certify=True, max_failure_rate=0.4, confidence=0.9, batch_size=8, **more,
    )  # fmt: skip
    proof = made.evidence.certificate
    assert (proof.n, proof.unit, made.evidence.n) == (8, "subjects", 16) and proof.certified is not None
    assert Schedule.load(made.save(tmp_path / "s.json")).evidence.certificate.sentence == proof.sentence


def test_a_verdict_speaks_of_subjects_too() -> None:
    made = adaptcache.calibrate(
        Pipe(), FIT, STEPS, eval_prompts=GEAR_PROMPTS, groups=[k // 2 for k in range(16)], min_psnr=99.0,
        certify=True, max_failure_rate=0.4, confidence=0.9, batch_size=8, budget=0.5,
    )  # fmt: skip
    assert "8 of 8 subjects did" in made.evidence.verdict and made.evidence.calls == (STEPS, STEPS)


def test_lines_that_vary_a_prompt_are_one_subject(tmp_path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("[calibration]\na\nb\n+ b at dusk\n[held-out]\nfox\n+ fox at dusk\n+ fox in snow\nowl\n")
    known = read_prompts(path)
    assert known.held_out == ("fox", "fox at dusk", "fox in snow", "owl") and known.calibration[2] == "b at dusk"
    assert known.groups == ("fox", "fox", "fox", "owl")
    path.write_text("[calibration]\na\n[held-out]\nfox\nowl\n")
    assert read_prompts(path).groups == ()


def test_a_line_cannot_vary_what_is_not_there(tmp_path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("[calibration]\na\n[held-out]\n+ fox at dusk\nowl\n")
    with pytest.raises(ValueError, match=r"line 4.*no line before it"):
        read_prompts(path)


def test_false_certificates_are_as_rare_as_promised_where_subjects_count_and_not_where_prompts_do() -> None:
    """400 draws; `python -m benchmarks.certificates` makes 2,000 and prints the table."""
    for variants in (1, 5):
        by_subject = false_share(variants, grouped=True, draws=400)
        assert by_subject <= 0.05 + 2.5 * np.sqrt(0.05 * 0.95 / 400)
    assert false_share(5, grouped=False, draws=400) > 0.15


def test_without_headings_subjects_are_never_split(tmp_path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("a\n+ a at dusk\nb\n+ b at dusk\n+ b in snow\nc\nd\ne\n")
    known = read_prompts(path)
    assert known.calibration == ("a", "a at dusk", "c", "d") and known.held_out == ("b", "b at dusk", "b in snow", "e")
    assert known.groups == ("b", "b", "b", "e")
