"""The certificate against brute force and scipy."""

import json

import numpy as np
import pytest
from conftest import schedule_of
from scipy.stats import binom, binomtest

from adaptcache.cli.show import describe
from adaptcache.evaluation.certify import Certificate, QualityTarget, certify, prompts_needed, upper_bound
from adaptcache.report import build_report
from adaptcache.schedule.format import Evidence
from adaptcache.schedule.schedule import Schedule


@pytest.mark.parametrize("n", [1, 7, 59, 256])
def test_the_bound_is_that_of_clopper_and_pearson(n):
    for failures in sorted({0, n // 10, n // 2, n - 1, n} & set(range(n + 1))):
        exact = binomtest(failures, n, alternative="less").proportion_ci(0.95, method="exact").high
        assert upper_bound(failures, n, 0.95) == pytest.approx(exact)


def test_the_bound_is_where_so_few_failures_become_unlikely():
    bound = upper_bound(3, 100, 0.9)
    assert binom.cdf(3, 100, bound) == pytest.approx(0.1)


@pytest.mark.parametrize(("max_failure_rate", "confidence"), [(0.05, 0.95), (0.1, 0.95), (0.01, 0.99), (0.5, 0.75)])
def test_fewer_prompts_than_needed_certify_nothing(max_failure_rate, confidence):
    need = prompts_needed(max_failure_rate, confidence)
    target = QualityTarget(40, max_failure_rate, confidence)
    for n, passes in ((need - 1, False), (need, True)):
        if n:
            assert (certify(np.full((1, n), 50.0), target).certified == 0) is passes


def test_the_fastest_setting_before_the_first_that_fails_is_certified():
    table = np.full((5, 100), 50.0)
    table[1, :1] = table[2, :2] = 30  # 2 of 100 are too many for 0.05 only from 1 on
    table[3, :40] = 30
    names = ["20 calls", "14 calls", "10 calls", "7 calls", "5 calls"]  # 5 calls passes, and is not asked
    found = certify(table, QualityTarget(40, 0.08), settings=names, prompts="emoji")
    assert (found.certified, found.setting, found.failures, found.n) == (2, "10 calls", 2, 100)
    assert found.upper == upper_bound(2, 100, 0.95) <= 0.08
    assert certify(table[3:], QualityTarget(40, 0.08)).certified is None


def test_a_value_at_the_target_meets_it():
    assert certify(np.full((1, 59), 40.0), QualityTarget(40)).failures == 0


def test_too_high_a_share_is_certified_no_more_often_than_claimed():
    """All outcomes of fixed-sequence testing on two settings, weighed by their probabilities."""
    n, max_failure_rate, confidence = 12, 0.3, 0.8
    passes = np.array([upper_bound(k, n, confidence) <= max_failure_rate for k in range(n + 1)])
    for slow in (0.05, 0.2, 0.3001, 0.5):
        for fast in (0.3001, 0.4, 0.6):
            chances = np.outer(binom.pmf(range(n + 1), n, slow), binom.pmf(range(n + 1), n, fast))
            wrong = chances[passes][:, passes].sum()  # the fast one is certified
            if slow > max_failure_rate:
                wrong = chances[passes].sum()
            assert wrong <= 1 - confidence + 1e-12


def test_the_sentence_says_what_is_claimed_and_what_is_not_covered():
    good = certify(np.full((1, 60), 50.0), QualityTarget(35), settings=["10 of 28 calls"], prompts="emoji-32")
    assert good.sentence.startswith("With 95 % confidence at most 5 % of prompts fall below 35 dB: with 10 of")
    assert "0 of 60 did, of emoji-32" in good.sentence and "no other weights" in good.sentence
    bad = certify(np.full((1, 60), 30.0), QualityTarget(35), settings=["10 of 28 calls"])
    assert bad.sentence.startswith("Not certified") and "with 10 of 28 calls 60 of 60 did" in bad.sentence


def test_a_schedule_keeps_its_certificate_and_shows_it(pipe, tmp_path, capsys):
    proof = certify(np.full((1, 60), 50.0), QualityTarget(35), settings=["4 of 8 calls"])
    seen = Evidence(prompts="p", n=60, calls=(4, 8), psnr={"mean": 50, "p05": 50}, speed=2, certificate=proof)
    schedule = schedule_of(pipe, [0, 2, 4, 6]).model_copy(update={"evidence": seen})
    loaded = Schedule.load(schedule.save(tmp_path / "s.json"))
    assert isinstance(loaded.evidence.certificate, Certificate) and "certificate" in str(loaded)
    assert loaded.evidence.certificate.setting == proof.setting
    describe(loaded)
    assert proof.sentence in " ".join(capsys.readouterr().out.split())
    assert proof.sentence in " ".join(build_report(loaded).split())
    data = json.loads((tmp_path / "s.json").read_text())
    names = {field.alias or name for name, field in Certificate.model_fields.items()}
    assert set(data["evidence"]["certificate"]) == names - {"unit"}  # written where it is not prompts


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"values": np.zeros(3)}, r"shape \(settings, prompts\), got \(3,\)"),
        ({"values": np.zeros((1, 0))}, r"got \(1, 0\)"),
        ({"values": [[np.nan, 40.0]]}, "not numbers"),
        ({"target": float("inf")}, "decibels, got inf"),
        ({"max_failure_rate": 0.0}, "max_failure_rate must be a share between 0 and 1, got 0; say 0.05"),
        ({"max_failure_rate": 5.0}, "got 5"),
        ({"confidence": 1.0}, "confidence must be a share between 0 and 1, got 1"),
        ({"settings": ["a", "b"]}, "2 names for 1 settings"),
    ],
)
def test_bad_claims_name_the_value(changes, complaint):
    with pytest.raises(ValueError, match=complaint):
        given = {"values": np.full((1, 60), 50.0), "target": 40.0, **changes}
        aims = {name: given.pop(name) for name in ("target", "max_failure_rate", "confidence") if name in given}
        certify(given.pop("values"), QualityTarget(**aims), **given)
