"""SmoothCache's curves by type of layer, and published methods fitted from Python and the command line."""

import sys

import flux
import numpy as np
import pytest
import torch
from conftest import CALL, STEPS, embedded, tiny_flux

import adaptcache
from adaptcache.calibration.methods import check_params, fit_thresholds
from adaptcache.cli import main
from adaptcache.errors import AttachError
from adaptcache.profiling.instances import layer_errors
from adaptcache.runs import PromptSet
from adaptcache.schedule.methods import METHODS
from adaptcache.schedule.schedule import Schedule
from adaptcache.sites.denoisers import find_layers

ARGUMENTS = dict(CALL.arguments)


def test_the_curves_are_those_of_the_outputs_written_out():
    pipe = tiny_flux()
    prompt = embedded(1)
    found = layer_errors(CALL.of(pipe), PromptSet.of(prompt), ["attention", "cross-attention", "mlp"])
    assert set(found) == {"attention", "mlp"}  # FLUX has no cross-attention
    outputs = {}
    for name, layer in find_layers(pipe.transformer, "attention").items():

        def hook(_, __, output, name=name):
            for number, tensor in enumerate(output if isinstance(output, tuple) else (output,)):
                outputs.setdefault((name, number), []).append(tensor)

        layer.register_forward_hook(hook)
    CALL(pipe, prompt)
    for i in range(STEPS):
        for back in range(1, 4):
            if i + back >= STEPS:
                assert found["attention"][i, back - 1] == np.inf
                continue
            pairs = [(values[i], values[i + back]) for values in outputs.values()]
            mean = np.mean([float((b - a).abs().mean() / b.abs().mean()) for a, b in pairs])
            assert found["attention"][i, back - 1] == pytest.approx(mean, rel=1e-5)


def test_measuring_leaves_nothing_and_is_refused_where_nothing_can_be_measured():
    pipe = tiny_flux()
    layer_errors(CALL.of(pipe), PromptSet.of(embedded(1)), ["attention"])
    assert all("_compiled_call_impl" not in vars(module) for module in pipe.transformer.modules())
    with pytest.raises(AttachError, match="no layers for the site 'cross-attention'"):
        layer_errors(CALL.of(pipe), PromptSet.of(embedded(1)), ["cross-attention"])
    pipe.transformer.transformer_blocks[0].compile(backend="eager")
    with pytest.raises(AttachError, match=r"transformer_blocks\.0 is compiled"):
        layer_errors(CALL.of(pipe), PromptSet.of(embedded(1)), ["attention"])


def test_one_threshold_serves_all_types_and_calmer_types_skip_more():
    calm, wild = np.full((12, 3), 0.1), np.full((12, 3), 0.3)
    for table in (calm, wild):
        table *= np.array([1.0, 1.5, 2.0])
        for i in range(12):
            table[i, max(11 - i, 0) :] = np.inf
    made = []
    for budget in (1.0, 0.7, 0.5, 0.3):
        rules = fit_thresholds({"attention": calm, "mlp": wild}, budget)
        grid = tuple(1 - i / 12 for i in range(12))
        counts = [len(rule.policy.steps(grid)) for rule in rules]
        assert rules[0].policy.threshold == rules[1].policy.threshold and counts[0] <= counts[1]
        made.append(sum(counts) / 24)
    assert made[0] == 1 and made == sorted(made, reverse=True) and abs(made[2] - 0.5) < 0.2
    with pytest.raises(ValueError, match="budget"):
        fit_thresholds({"attention": calm}, 0.0)


def test_smoothcache_is_fitted_by_layer_type_and_runs(tmp_path):
    pipe, prompts = tiny_flux(), embedded(4)
    schedule = adaptcache.calibrate(
        pipe, prompts[:2], STEPS, method="smoothcache", budget=0.6, pipe_kwargs=ARGUMENTS, eval_prompts=prompts[2:]
    )
    assert [rule.site for rule in schedule.rules] == ["attention", "mlp"]
    assert schedule.evidence.psnr["mean"] > 20 and schedule.made["method"] == "smoothcache"
    loaded = Schedule.load(schedule.save(tmp_path / "s.json"))
    with adaptcache.attach(pipe, loaded, strict=True) as handle:
        CALL(pipe, prompts[:1])
        sites = handle.report().sites
    assert set(sites) == {"attention", "mlp"} and any(len(steps) < STEPS for steps in sites.values())
    same = adaptcache.calibrate(pipe, prompts[:2], STEPS, method="smoothcache", budget=1.0, pipe_kwargs=ARGUMENTS)
    plain = CALL(pipe, prompts[:1])
    with adaptcache.attach(pipe, same):
        assert (CALL(pipe, prompts[:1]) == plain).all()


def test_intervals_and_gates_are_fitted_to_the_budget():
    pipe = flux.pipeline()
    generator = torch.Generator().manual_seed(0)
    prompts = [
        {
            "prompt_embeds": torch.randn(1, 5, 16, generator=generator),
            "pooled_prompt_embeds": torch.randn(1, 8, generator=generator),
        }
    ]
    given = dict(num_inference_steps=8, budget=0.5, pipe_kwargs={"height": 16, "width": 16})
    fora = adaptcache.calibrate(pipe, prompts, method="fora", **given)
    assert {rule.site for rule in fora.rules} >= {"attention", "mlp"}
    assert {rule.policy.interval for rule in fora.rules} == {2}
    gate = adaptcache.calibrate(pipe, prompts, method="t-gate", **given).rules[0]
    assert (gate.site, gate.policy.warm_up, gate.policy.interval) == ("cross-attention", 4, 1024)
    delta = adaptcache.calibrate(pipe, prompts, method="delta-dit", **given).rules
    assert [rule.span for rule in delta] == [(0.5, 1.0), (0.0, 0.5)]


@pytest.mark.parametrize(
    "method", ["magcache", pytest.param("smoothcache", marks=pytest.mark.slow)]
    + [pytest.param(name, marks=pytest.mark.slow) for name in ("teacache", "sencache", "l2p", "pab")],
)  # fmt: skip
def test_the_command_line_fits_a_published_method(method, monkeypatch, tmp_path, capsys):
    words = "--model emoji-flux-32 --steps 4 --fit-on 1 --eval-on 1 --budget 0.5 --out s.json".split()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["adaptcache", "calibrate", "--method", method, *words])
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code, capsys.readouterr().err
    schedule = Schedule.load(tmp_path / "s.json")
    assert schedule.name == f"emoji-flux-32-4-{method}-2x-fit1-eval1" and schedule.evidence.n == 1
    assert {rule.policy.type for rule in schedule.rules} == {METHODS[method].policy}


def test_the_command_line_refuses_before_it_works(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    for words, message in [
        (["--method", "magcash"], "did you mean magcache"),
        (["--method", "magcache", "--teacher-steps", "56"], "give magcache, or reference steps, not both"),
    ]:
        monkeypatch.setattr(sys, "argv", ["adaptcache", "calibrate", *words])
        with pytest.raises(SystemExit) as end:
            main()
        assert end.value.code == 2 and message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "name, given, wrong, cure",
    [
        ("smoothcache", {"longest": 4, "first": True}, "threshold", "longest"),
        ("ecad", {"site": "mlp", "trials": 3}, "trails", "trials"),
        ("teacache", {"degree": 2, "max_skip": 4}, "threshold", "max_skip"),
        ("speca", {"order": 1, "threshold": 0.2}, "max_skip", "warm_up"),
        ("hyca", {"clusters": 3, "interval": 2}, "groups_", "groups"),
        ("icc", {"rank": 2}, "ranks", "rank"),
        ("otcache", {"between": (0.6, 0.2)}, "betwen", "between"),
    ],
)
def test_a_fit_says_which_parameters_it_does_not_take(name, given, wrong, cure):
    check_params(name, given)
    with pytest.raises(LookupError, match=f"parameter of {name}, which is fitted, '{wrong}'.*{cure}"):
        check_params(name, {wrong: 1})
    if name == "ecad":
        with pytest.raises(LookupError, match="no site of blocks or layers 'block'; did you mean blocks"):
            check_params(name, {"site": "block"})
