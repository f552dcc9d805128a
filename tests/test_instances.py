"""Blocks and layers that decide for themselves, tokens, and plans for each block."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import adaptcache
from adaptcache.calibration.methods import build_table, fit_tables, search_rows
from adaptcache.engines import make_setup
from adaptcache.errors import AttachError
from adaptcache.fitting.instances import accumulated_rows, cheapest_rows, interpolated_plan, two_speed_rows
from adaptcache.policies.blockwise import Blockwise
from adaptcache.policies.codebook import Codebook
from adaptcache.policies.foresight import Foresight
from adaptcache.policies.rank import Rank
from adaptcache.policies.table import Table
from adaptcache.policies.uniform import Uniform
from adaptcache.profiling.instances import measure_instances
from adaptcache.profiling.measure import measure
from adaptcache.runs import PromptSet
from adaptcache.schedule.rule import Rule, TokenChoice
from adaptcache.schedule.schedule import Schedule
from adaptcache.sites.tokens import cluster_tokens
from adaptcache.step import Step, relative_change
from tests.pipelines.table import TABLE, built, generated, grid_of, same

STEPS = 8
SITES = {"l2c": ["attention", "cross-attention", "mlp"]}  # the second is not there


def schedule(policy, site="blocks", forecast="extrapolate", **more):
    return Schedule(name="by hand", rules=(Rule(site=site, policy=policy, forecast={"type": forecast}, **more),))


def table(*rows):
    return Table(rows=tuple("".join("01"[i in row] for i in range(STEPS)) for row in rows))


def blocks_of(denoiser):
    return [*denoiser.transformer_blocks, *getattr(denoiser, "single_transformer_blocks", ())]


@pytest.fixture(scope="module")
def setup():
    return replace(built("Flux"), steps=STEPS)


class Loop:
    """Block caching written out as a loop: a block that its row skips adds what it added last."""

    def __init__(self, blocks, rows):
        self.rows, self.blocks, self.calls, self.added = rows, blocks, [0] * len(blocks), {}
        for number, block in enumerate(blocks):
            block.forward = self.forward(number, block.forward)

    def forward(self, number, own):
        def forward(hidden_states, encoder_hidden_states, **kwargs):
            index, self.calls[number] = self.calls[number], self.calls[number] + 1
            if index in self.rows[number]:
                text, image = own(hidden_states=hidden_states, encoder_hidden_states=encoder_hidden_states, **kwargs)
                self.added[number] = text - encoder_hidden_states, image - hidden_states
                return text, image
            text, image = self.added[number]
            return encoder_hidden_states + text, hidden_states + image

        return forward

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for block in self.blocks:
            del block.forward


def test_a_row_for_each_block_is_the_loop_written_out(setup):
    denoiser = setup.pipe.transformer
    rows = [(0, 2, 5), (0, 1, 3, 6), *[(0, 4)] * (len(blocks_of(denoiser)) - 2)]
    plain = generated(setup)
    with adaptcache.attach(setup.pipe, schedule(table(*rows), each=True)) as handle:
        made = generated(setup)
        assert [handle.report().sites[f"blocks {k}"] for k in range(len(rows))] == rows
        assert "computed" in str(handle.report())
    with Loop(blocks_of(denoiser), rows):
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(generated(setup), made, strict=True))
    assert same(generated(setup), plain) and not same(made, plain)


@pytest.mark.parametrize("name", ["Flux", "PixArt-Sigma", "Flux, two branches"])
def test_rows_of_ones_change_nothing(name):
    setup = built(name)
    plain, steps = generated(setup), len(grid_of(setup))
    for site in ("blocks", "attention", "mlp"):
        with adaptcache.attach(setup.pipe, schedule(Table(rows=("1" * steps,)), site, each=True)):
            assert same(generated(setup), plain)


def test_a_table_of_another_model_is_refused(setup):
    with pytest.raises(AttachError, match="7 rows"):
        adaptcache.attach(setup.pipe, schedule(table(*[(0,)] * 7), each=True))
    with pytest.raises(ValueError, match="one length"):
        Table(rows=("101", "10"))
    with pytest.raises(ValueError, match="`each` is for"):
        schedule(Uniform(), "step", each=True)


def steps_of(policy, outputs):
    """Runs a policy on K blocks with given outputs, shape (N, K, B, D), and returns what it computes, (N, K)."""
    times = tuple(np.linspace(1, 0.1, len(outputs)).tolist())
    states = [policy.init(times)] * outputs.shape[1] if policy.shared else [policy.init(times) for _ in outputs[0]]
    past, made = [[] for _ in outputs[0]], []
    for index, values in enumerate(outputs):
        made.append([])
        for k, value in enumerate(values):
            step = Step(index, times, tuple(past[k]), instance=k)
            computed = index == 0 or policy.compute(states[k], step)
            if computed:
                policy.observe(states[k], step, value)
                past[k].insert(0, index)
            made[-1].append(computed)
    return np.array(made)


def drifting(speeds, steps=12):
    """Returns outputs of blocks that move at constant speeds."""
    base = torch.ones(1, 16)
    return torch.stack([torch.stack([base * (1 + speed * i) for speed in speeds]) for i in range(steps)])


def test_bwcache_reuses_all_blocks_once_their_mean_change_is_small():
    calm, wild = drifting([0.001, 0.002, 0.003]), drifting([0.001, 0.9, 0.9])
    made = steps_of(Blockwise(threshold=0.05, reuse=0.25, cool_down=0.1), calm)
    assert (made == made[:, :1]).all()  # one decision for all
    # 0 and 1 show the change; then three are reused after each that was computed, and the last is computed
    assert np.flatnonzero(made[:, 0]).tolist() == [0, 1, 5, 9, 11]
    mean = relative_change(wild[1, 1], wild[0, 1])
    assert mean > 0.05 and steps_of(Blockwise(threshold=0.05), wild)[:3].all()


def test_foresight_reuses_each_block_by_its_own_standard():
    outputs = torch.randn(12, 2, 1, 512, generator=torch.Generator().manual_seed(0))  # changes of one size
    outputs[4:, 1] *= 10  # the second block leaves its standard
    made = steps_of(Foresight(threshold=1.5, interval=3, warm_up=0.25), outputs)
    assert made[:3].all() and made[3].all() and made[6].all() and made[9].all()
    assert not made[[4, 5, 7, 8, 10, 11], 0].any() and made[7:, 1].all()


def test_sortblock_computes_the_blocks_that_changed_most():
    made = steps_of(Rank(interval=3, share=0.34), drifting([0.01, 0.5, 0.02]))
    assert made[[0, 1, 4, 7, 10]].all()
    assert all(made[i].tolist() == [False, True, False] for i in (2, 3, 5, 6, 8, 9, 11))


def test_adacache_goes_by_the_mean_over_layers():
    book = Codebook(table=((0.05, 4), (0.3, 2)))
    made = steps_of(book, drifting([0.001, 0.001], 10))
    assert (made == made[:, :1]).all() and np.flatnonzero(made[:, 0]).tolist() == [0, 1, 5, 9]
    outputs = drifting([0.001, 0.4], 10)
    assert np.flatnonzero(steps_of(book, outputs)[:, 0]).tolist()[:3] == [0, 1, 3]


def test_u_net_encoders_are_reused_and_their_decoders_run():
    setup = built("SD15" if "SD15" in TABLE else next(n for n in TABLE if n.startswith("SD")))
    unet, calls = setup.pipe.unet, []
    handles = [unet.down_blocks[0].register_forward_hook(lambda *_: calls.append("down"))]
    handles.append(unet.up_blocks[0].register_forward_hook(lambda *_: calls.append("up")))
    with adaptcache.attach(setup.pipe, schedule(Uniform(interval=2), "encoder")) as handle:
        assert all(value.isfinite().all() for value in generated(setup))
        steps = len(handle.report().calls)
    for one in handles:
        one.remove()
    assert calls.count("down") < calls.count("up") == calls.count("down") * steps / len(range(0, steps, 2))
    with pytest.raises(AttachError, match="way down of a U-Net"):
        adaptcache.attach(built("Flux").pipe, schedule(Uniform(), "encoder"))


# Tokens


@pytest.mark.parametrize("score", ["change", "norm", "cluster"])
def test_all_tokens_are_the_whole_layer_and_a_part_saves_work(setup, score):
    plain, sizes = generated(setup), []
    layer = setup.pipe.transformer.transformer_blocks[0].ff
    hook = layer.register_forward_hook(lambda module, args, out: sizes.append(args[0].shape[1]))
    whole = TokenChoice(ratio=1.0, score=score)
    if score != "cluster":  # each token would have to be a cluster of its own
        with adaptcache.attach(setup.pipe, schedule(Uniform(interval=3), "tokens", tokens=whole)):
            assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(generated(setup), plain, strict=True))
    sizes.clear()
    part = TokenChoice(ratio=0.25, score=score, spread=0.1)
    with adaptcache.attach(setup.pipe, schedule(Uniform(interval=3), "tokens", tokens=part)) as handle:
        made = generated(setup)
        assert not same(made, plain) and all(value.isfinite().all() for value in made)
        full = handle.report().sites["tokens"]
    hook.remove()
    sizes.remove(1)  # the trial whether a token alone gives the same
    most = max(sizes)
    assert [size == most for size in sizes] == [i in full for i in range(len(sizes))]
    assert set(sizes) == {most, max(1, round(most / 4))}
    assert same(generated(setup), plain)


def test_layers_that_mix_tokens_are_refused(setup):
    class Mixing(nn.Module):
        def __init__(self, own):
            super().__init__()
            self.own = own

        def forward(self, x):
            return self.own(x - x.mean(1, keepdim=True))

    block = built("Flux").pipe
    block.transformer.transformer_blocks[0].ff = Mixing(block.transformer.transformer_blocks[0].ff)
    with (
        adaptcache.attach(block, schedule(Uniform(interval=3), "tokens", tokens=TokenChoice())),
        pytest.raises(AttachError, match="token by token"),
    ):
        generated(setup, block)


def test_clusters_are_those_of_the_data():
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    labels = torch.arange(30) // 10
    values = centres[labels] + 0.1 * torch.randn(1, 30, 2, generator=torch.Generator().manual_seed(0))
    groups = cluster_tokens(values, 3)[0]
    assert len({(int(a), int(b)) for a, b in zip(labels, groups, strict=True)}) == 3


# Plans for each block


def brute_rows(errors, weights, price):
    """Returns the cheapest steps of one block by trying all."""
    steps = len(weights)
    best = (np.inf, ())
    for flags in itertools.product([0, 1], repeat=steps - 1):
        row = [0, *(i + 1 for i, flag in enumerate(flags) if flag)]
        cost = price * len(row)
        for i in range(steps):
            last = max(at for at in row if at <= i)
            if i > last:
                cost += errors[last, i - last - 1] * weights[i] if i - last <= errors.shape[1] else np.inf
        best = min(best, (cost, tuple(row)))
    return list(best[1])


def test_rows_of_blocks_are_the_best_for_some_price_and_keep_the_budget():
    rng = np.random.default_rng(0)
    errors = np.cumsum(rng.random((3, 7, 6)), axis=2)
    weights, seconds = rng.random(7), np.array([1.0, 2.0, 0.5])
    for budget in (0.4, 0.6, 0.9):
        rows = cheapest_rows(errors, weights, seconds, budget)
        spent = sum(len(row) * s for row, s in zip(rows, seconds, strict=True)) / (7 * 3.5)
        assert spent <= budget
        prices = np.geomspace(1e-6, 1e3, 400)
        # one price explains all rows: each is what trying everything finds
        fits = [all(brute_rows(errors[k], weights, p * seconds[k]) == rows[k] for k in range(3)) for p in prices[::8]]
        closer = [] if any(fits) else [p for p in prices if brute_rows(errors[0], weights, p) == rows[0]]
        assert any(fits) or closer
    assert cheapest_rows(errors, weights, seconds, 1.0) == [list(range(7))] * 3


def test_block_caching_reuses_until_changes_add_up_and_calm_blocks_have_longer_intervals():
    changes = np.array([[0, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1], [0, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4]])
    rows = accumulated_rows(changes, 0.6)
    assert len(rows[0]) < len(rows[1]) and sum(map(len, rows)) <= 0.6 * 16
    fast, slow = two_speed_rows(changes[::-1], 0.5)
    assert len(slow) < len(fast) and fast[1] * 2 == slow[1]


def test_plans_between_two_plans_start_and_end_like_them():
    safe, fast = list(range(0, 20, 2)), [0, 3, 7, 18]
    assert interpolated_plan(safe, fast, 10) == safe and interpolated_plan(safe, fast, 4) == fast
    between = interpolated_plan(safe, fast, 7)
    assert len(set(between)) == 7 and between == sorted(between) and between[0] == 0 and between[-1] == 18
    with pytest.raises(ValueError, match="from 4 to 10"):
        interpolated_plan(safe, fast, 3)


def test_tables_are_fitted_to_errors_of_each_block_and_computed_by_budget(setup):
    given = make_setup(setup.pipe, STEPS, dict(setup.call))
    prompts = PromptSet(tuple(setup.prompts[:2]))
    found = measure_instances(given, prompts, "blocks", longest=3)
    count = len(blocks_of(setup.pipe.transformer))
    assert found.errors.shape == (count, STEPS, 3) and (found.seconds > 0).all()
    finite = np.isfinite(found.errors)
    assert finite[:, 0].all() and not finite[:, -1].any() and (found.errors[finite] >= 0).all()
    measured = measure(given, prompts)
    for method in ("planned-blocks", "block-caching", "profilingdit", "l2c"):
        rules = fit_tables(measured, method, 0.5, SITES.get(method, ["blocks"]))
        fitted = Schedule(name=method, rules=rules)
        with adaptcache.attach(setup.pipe, fitted) as handle:
            assert all(value.isfinite().all() for value in generated(setup))
            sites = handle.report().sites
        assert len(sites) == sum(count if rule.site == "blocks" else len(rule.policy.rows) for rule in rules)
        assert sum(map(len, sites.values())) / (len(sites) * STEPS) <= 0.75


def test_optuna_finds_rows_that_are_no_worse_in_runs_and_keeps_the_budget(setup):
    given = make_setup(setup.pipe, STEPS, dict(setup.call))
    prompts = PromptSet(tuple(setup.prompts[:1]))
    found, weights = measure_instances(given, prompts, "blocks"), np.ones(STEPS)
    plain = generated(setup)

    def off(rows):
        with adaptcache.attach(setup.pipe, schedule(build_table(rows, STEPS), each=True)):
            return sum(float((a - b).square().sum()) for a, b in zip(generated(setup), plain, strict=True))

    first = cheapest_rows(found.errors, weights, found.seconds, 0.6)
    assert search_rows(given, prompts, found, weights, 0.6, 1) == first
    best = search_rows(given, prompts, found, weights, 0.6, 6)
    assert off(best) <= off(first) * 1.0001
    spent = sum(len(row) * s for row, s in zip(best, found.seconds, strict=True))
    assert spent <= 0.6 * STEPS * found.seconds.sum()


def test_a_plan_for_each_block_is_calibrated_by_name_and_sites_that_are_not_there_are_refused(setup):
    how = {"method": "planned-blocks", "budget": 0.6, "pipe_kwargs": dict(setup.call), "progress": False}
    fitted = adaptcache.calibrate(setup.pipe, setup.prompts[:2], STEPS, params={"site": "mlp"}, **how)
    assert fitted.rules[0].site == "mlp" and fitted.rules[0].each and len(set(fitted.rules[0].policy.rows)) > 1
    with pytest.raises(LookupError, match="did you mean mlp"):
        adaptcache.calibrate(setup.pipe, setup.prompts[:2], STEPS, params={"site": "mlps"}, **how)
