"""Methods of the survey, each against its closed form, a golden mask, or its decisions written out as a loop."""

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import toy

import adaptcache
from adaptcache.calibration.methods import fit_method
from adaptcache.engines import make_setup
from adaptcache.engines.formats.read import read_schedule
from adaptcache.errors import AttachError, ScheduleError
from adaptcache.fitting.instances import turning_plan
from adaptcache.forecasts.affine import Affine
from adaptcache.forecasts.base import Known
from adaptcache.forecasts.channels import Channels, group_channels
from adaptcache.forecasts.extrapolate import Extrapolate
from adaptcache.forecasts.increment import Factors, Increment
from adaptcache.forecasts.momentum import Momentum
from adaptcache.policies.codebook import Codebook
from adaptcache.policies.gate import Gate, Linear
from adaptcache.policies.table import Table
from adaptcache.policies.uniform import Uniform
from adaptcache.profiling.instances import fit_affine, fit_positions, reduced_rank
from adaptcache.profiling.measure import measure
from adaptcache.runs import PromptSet
from adaptcache.schedule.methods import METHODS
from adaptcache.schedule.rule import Rule, TokenChoice
from adaptcache.schedule.schedule import Schedule
from adaptcache.sites.tokens import AttentionTap, LayerTokens, Regions, Tokens, influence
from adaptcache.step import Step, relative_change
from tests.pipelines.table import built, generated, same

STEPS = 8
PAGE = (Path(__file__).parents[1] / "docs" / "methods.md").read_text(encoding="utf-8")

# What the survey (arXiv 2510.19755) names as representative, and what its companion list of papers has.
NAMED = """
DeepCache, Faster Diffusion, FORA, TeaCache, LazyDiT, MagCache, EasyCache, Block Caching, AdaCache, DBCache, Foresight,
TaylorSeer, AB-Cache, HiCache, FoCa, ClusCa, SpeCa, OmniCache, HyCa, ProfilingDiT,
FISEdit, Approximate Caching, L2C, DiTFastAttn, VCUT, TokenCache, FRDiff, ToCa, HarmoniCa, Ca2-VDM, DuCa, FlexCache,
DaTo, EOC, FEB-Cache, CacheQuant, QuantCache, FeMo, ParaStep, RainFusion, ICC, FastCache, Chipmunk, ECAD, DBPrune, BAC,
Skip-DiT, WaveEx, GOC, TaoCache, HERO, MixCache, Z-Cache, SpecDiff, BWCache, DiTReducio, LightningCP, ElasticCache,
SortBlock, RAS, ResCa, OTCache, FlowCache
"""  # fmt: skip


def plain(name):
    """Returns a name in small letters and digits."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def test_every_method_that_the_survey_and_its_list_name_has_a_row():
    runs = {plain(name) for name in METHODS}
    part = PAGE.split("## What does not run")[1]
    reasons = {
        plain(name): why.strip()
        for line in part.splitlines()
        if line.startswith("| ") and line.count("|") == 3
        for names, why in [line.strip("| ").split("|")]
        for name in names.split(",")
    }
    for name in re.split(r",\s*", NAMED.strip()):
        assert plain(name) in runs or reasons.get(plain(name)), f"{name} has no row in docs/methods.md"
    assert not runs & reasons.keys()


def test_every_method_says_where_it_was_checked():
    for name, method in METHODS.items():
        assert method.checked and f"| {method.checked} |" in next(
            line for line in PAGE.splitlines() if line.startswith(f"| `{name}`")
        )


@pytest.fixture(scope="module")
def setup():
    return replace(built("Flux"), steps=STEPS)


def known_of(*past, x=None, past_x=()):
    return Known(past, past[0] if x is None else x, past[0], past_x)


TIMES = tuple(np.linspace(1, 0.1, STEPS).tolist())


# Forecasts


def test_block_caching_scales_and_shifts_each_channel():
    last = torch.randn(2, 5, 3)
    rows = ((), (), (2.0, 1.0, -1.0, 0.5, 0.0, 3.0), (0.25,), *[()] * 4)
    forecast = Affine(rows=(rows,))
    made = [forecast.combine(known_of(last), Step(i, TIMES, (1,))) for i in (2, 3, 4)]
    assert torch.allclose(made[0], last * torch.tensor([2.0, 1.0, -1.0]) + torch.tensor([0.5, 0.0, 3.0]))
    assert torch.allclose(made[1], last / 4) and torch.equal(made[2], last)
    with pytest.raises(ValueError, match="of 3 channels, the output has 4"):
        forecast.combine(known_of(torch.randn(2, 5, 4)), Step(2, TIMES, (1,)))


def test_scales_and_shifts_are_the_least_squares_of_what_blocks_add(setup):
    added, block = [], setup.pipe.transformer.single_transformer_blocks[0]

    def note(module, args, kwargs, output):
        text, image = output
        added.append(torch.cat([text - kwargs["encoder_hidden_states"], image - kwargs["hidden_states"]], 1)[0])

    hook = block.register_forward_hook(note, with_kwargs=True)
    given = make_setup(setup.pipe, STEPS, dict(setup.call))
    count = len(setup.pipe.transformer.transformer_blocks) + len(setup.pipe.transformer.single_transformer_blocks)
    number = len(setup.pipe.transformer.transformer_blocks)
    prompts = PromptSet(tuple(setup.prompts[:1]))
    table = fit_affine(given, prompts, "blocks", [[0, 3]] * count, channels=True)
    hook.remove()
    x, y = added[3].double(), added[5].double()  # at step 5 the block reuses step 3
    for c in range(x.shape[1]):
        slope, base = np.polyfit(x[:, c].numpy(), y[:, c].numpy(), 1)
        row = np.array(table[number][5])
        assert row[c] * x[:, c].numpy() + row[c + x.shape[1]] == pytest.approx(
            slope * x[:, c].numpy() + base, rel=2e-2, abs=2e-2 * float(y.abs().max())
        )
    assert table[number][3] == () and len(table[number][4]) == 2 * x.shape[1]


def test_icc_is_exact_for_layers_that_are_linear(setup):
    single = setup.pipe.transformer.single_transformer_blocks
    count = sum(2 for _ in setup.pipe.transformer.transformer_blocks)  # MLPs of image and text, computed always
    rows = tuple("1" * STEPS for _ in range(count)) + tuple("10" * (STEPS // 2) for _ in single)
    exact = [
        Factors(
            down=tuple(map(tuple, np.eye(block.proj_mlp.in_features).tolist())),
            up=tuple(map(tuple, block.proj_mlp.weight.T.tolist())),
        )
        for block in single
    ]
    rule = Rule(
        site="mlp", policy=Table(rows=rows), forecast=Increment(layers=(*[Factors()] * count, *exact)), each=True
    )
    full = generated(setup)
    with adaptcache.attach(setup.pipe, Schedule(name="icc", rules=(rule,))) as handle:
        made = generated(setup)
        assert handle.report().sites[f"mlp {count}"] == tuple(range(0, STEPS, 2))
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(made, full, strict=True))


def test_matrices_of_low_rank_are_those_of_the_data():
    rng = np.random.default_rng(0)
    down, up = rng.standard_normal((2, 6)), rng.standard_normal((2, 9))
    x = rng.standard_normal((500, 6))
    a, b = reduced_rank(x.T @ x, x.T @ (x @ down.T @ up), 2)
    assert x @ a.T @ b == pytest.approx(x @ down.T @ up, rel=1e-2, abs=1e-2)


def test_hyca_gives_each_group_of_channels_the_solver_that_is_best_for_it():
    steps, plan = 10, [0, 1, 2, 5, 8]
    line = np.arange(steps)[:, None, None] * np.ones((1, 2, 4)) + 1.0
    flip = np.tile(np.array([1.0, -1.0])[np.arange(steps) % 2][:, None, None], (1, 3, 4))
    outputs = np.concatenate([line, flip], 1)
    forecast = group_channels(outputs, np.ones(steps), plan, [0, 0, 1, 1, 1])
    assert forecast.solvers[0] in ("taylor-1", "taylor-2") and forecast.solvers[1] != forecast.solvers[0]
    past = [torch.from_numpy(outputs[i].T[None]).float() for i in (5, 2, 1)]  # (1, L, C)
    made = forecast.combine(known_of(*past), Step(7, tuple(np.linspace(1, 0.1, steps)), (5, 2, 1, 0)))
    assert torch.allclose(made[..., :2], torch.full((1, 4, 2), 8.0))
    with pytest.raises(ValueError, match="of 5 channels"):
        forecast.combine(known_of(torch.ones(1, 4, 6)), Step(7, TIMES, (5,)))
    with pytest.raises(ValueError, match="group 2"):
        Channels(groups=(0, 2), solvers=("reuse", "bdf"))


def test_goc_reuses_where_the_change_turns():
    profile = toy.profile(STEPS)
    change = np.array([[0, 5, 4, 3, 4, 5, 4, 3.0]])
    fitted = Momentum.fit(replace(profile, change_out=change), [0, 2, 4, 6], inflections=True)
    assert fitted.reuse_at == tuple(float(profile.times[i]) for i in (3, 5))
    times = tuple(map(float, profile.times))
    assert fitted.weights(Step(3, times, (2, 0))).past == (1.0,)
    assert fitted.weights(Step(7, times, (6, 4))).past == (1.5, -0.5)


# Policies and plans


def test_lazydit_computes_a_layer_where_its_gate_says_so():
    gates = (Linear(weights=(1.0, -2.0), bias=0.1), Linear(weights=(0.5, 0.5)))
    policy = Gate(gates=gates)
    for instance, gate in enumerate(gates):
        for seed in range(20):
            x = torch.randn(3, 7, 2, generator=torch.Generator().manual_seed(seed))
            values = [1 / (1 + np.exp(-(sample.mean(0) @ torch.tensor(gate.weights) + gate.bias))) for sample in x]
            step = Step(2, TIMES, (0,), instance=instance, x=x)
            assert policy.compute([], step) == any(value >= 0.5 for value in values)
    with pytest.raises(ValueError, match="of 2 channels, and 5 enter"):
        policy.compute([], Step(2, TIMES, (0,), x=torch.ones(1, 7, 5)))


def test_adacache_regularises_by_motion_as_its_loop_does():
    frames, steps = 4, 20
    generator = torch.Generator().manual_seed(0)
    outputs = (torch.randn(steps, 1, frames * 3, 5, generator=generator) * 0.15).cumsum(0) + 1
    policy = Codebook(frames=frames)

    def written_out():
        computed, previous, before, gap, due, motion = [], None, 0, 1, 0, 1.0
        for i in range(steps):
            if i < due:
                continue
            computed.append(i)
            r = outputs[i, 0]
            due = i + 1
            if previous is not None:
                gap = i - before
                change = ((previous - r).abs().sum() / previous.abs().sum()).item() / gap
                m = 1.0
                if 0.1 <= i / steps <= 0.9:
                    ahead, behind = r[3:], r[:-3]
                    m = ((ahead - behind).abs().sum() / (ahead.abs().sum() + behind.abs().sum())).item()
                    m = (m / 0.385) ** 8
                gradient = 10 * (m - motion) / gap
                motion, change = m, change * (m + abs(gradient))
                due = i + next((skip for most, skip in policy.table if change < most), 1)
            previous, before = r, i
        return computed

    state, past, times = policy.init(()), [], tuple(np.linspace(1, 0.1, steps).tolist())
    for i in range(steps):
        step = Step(i, times, tuple(reversed(past)))
        if i == 0 or policy.compute(state, step):
            policy.observe(state, step, outputs[i])
            past.append(i)
    assert past == written_out() and past != list(range(steps))
    with pytest.raises(ScheduleError, match="not of 5 frames"):
        Codebook(frames=5).motion(policy.init(()), Step(5, times), outputs[5], 1)


def test_omnicache_computes_where_the_trajectory_turns():
    angles = np.concatenate([np.zeros(6), np.linspace(0, np.pi / 2, 6), np.full(8, np.pi / 2)])
    vectors = np.stack([np.cos(angles), np.sin(angles)], 1)
    plan = turning_plan(vectors @ vectors.T, 5)
    assert plan[0] == 0 and plan == sorted(set(plan)) and all(6 <= step <= 12 for step in plan[1:])
    even = turning_plan(np.ones((20, 20)), 5)  # nothing turns: all over the run
    assert np.diff(even).max() <= 5 and turning_plan(np.eye(4), 4) == [0, 1, 2, 3]


class Chunks(toy.Pipe):
    """Denoises one chunk of a clip after the other."""

    def __call__(self, prompt, **more):
        return [super(Chunks, self).__call__(text, **more) for text in TEXTS][-1]


TEXTS = ("a", "a chunk that is quite another")


def test_flowcache_decides_in_each_chunk_by_its_own_input():
    pipe, threshold, times = Chunks(), 0.3, []
    forward, generator = pipe.transformer.forward, torch.Generator().manual_seed(0)

    def noted(x, t, condition):
        times.append(float(t[0]))
        return forward(x, t, condition)

    pipe.transformer.forward = noted
    with torch.no_grad(), adaptcache.attach(pipe, Schedule.of("flowcache", threshold=threshold)):
        made = pipe("", num_inference_steps=12, generator=generator)[0]
    expected, generator = [], torch.Generator().manual_seed(0)
    for text in TEXTS:
        x, total, before, u = torch.randn(1, 9, 6, generator=generator), 0.0, None, None
        pipe.scheduler.set_timesteps(12)
        sigmas = pipe.scheduler.sigmas
        for i in range(12):
            total += 0.0 if before is None else relative_change(x, before).item()
            if i < 5 or i == 11 or total >= threshold:
                t = pipe.scheduler.timesteps[i] / 1000
                expected.append(float(t))
                total = 0.0
                with torch.no_grad():
                    u = forward(x, t.expand(1), torch.zeros(1, 1, 1) * len(text))[0]
            before, x = x, x + (sigmas[i + 1] - sigmas[i]) * u
    assert times == pytest.approx(expected) and 2 < len(times) < 24
    assert torch.allclose(made, x, atol=1e-5)


# Masks of others


def written(path, data):
    path.write_text(json.dumps(data))
    return path


def test_a_router_of_learning_to_cache_is_its_loop(tmp_path):
    depth, steps = 3, 6
    generator = torch.Generator().manual_seed(0)
    routers = {f"{i}.prob": 3 * torch.randn(2 * depth, generator=generator) for i in range(steps)}
    torch.save({"routers": routers, "epoch": 3}, tmp_path / "router.pt")
    schedule = read_schedule(tmp_path / "router.pt")
    assert [rule.site for rule in schedule.rules] == ["attention", "mlp"] and all(rule.each for rule in schedule.rules)
    for block in range(depth):
        for number, rule in enumerate(schedule.rules):
            row = ""
            for index in reversed(range(steps)):  # rows go with the noise, so the first step has the last one
                open_ = torch.sigmoid(routers[f"{index}.prob"][2 * block + number]) > 0.1
                row += "1" if index % 2 == 1 or open_ else "0"
            assert rule.policy.rows[block] == row
    free = read_schedule(tmp_path / "router.pt", kind="harmonica")
    assert free.rules[0].policy.share <= schedule.rules[0].policy.share and free.rules[0].policy.rows[0][0] == "1"
    torch.save([torch.nn.Linear(2, 2)], tmp_path / "module.pt")
    with pytest.raises(ScheduleError, match="holds no router"):
        read_schedule(tmp_path / "module.pt")


def test_a_schedule_of_ecad_is_its_loop_and_runs(tmp_path, setup):
    double = len(setup.pipe.transformer.transformer_blocks)
    single = len(setup.pipe.transformer.single_transformer_blocks)
    rng = np.random.default_rng(0)
    parts = {"": ("full_attn", "full_ff", "full_ff_context"), "single_": ("single_attn", "single_proj_mlp")}
    blocks = [f"{k}" for k in range(double)] + [f"single_{k}" for k in range(single)]
    steps = {
        f"{i:03}": {
            name: {p: bool(i == 0 or rng.random() < 0.5) for p in parts["single_" * name.startswith("single")]}
            for name in blocks
        }
        for i in range(STEPS)
    }
    data = {"cache_schedule": {"num_inference_steps": STEPS, "schedule": steps}}
    schedule = read_schedule(written(tmp_path / "ecad.json", data))
    with adaptcache.attach(setup.pipe, schedule) as handle:
        assert all(value.isfinite().all() for value in generated(setup))
        sites = handle.report().sites
    layers = [(name, p) for name in blocks for p in parts["single_" * name.startswith("single")]]
    for site, kinds in {"attention": ("attn",), "mlp": ("ff", "proj_mlp", "context")}.items():
        own = [(name, p) for name, p in layers if p.endswith(kinds)]
        for number, (name, p) in enumerate(own):
            assert sites[f"{site} {number}"] == tuple(i for i in range(STEPS) if steps[f"{i:03}"][name][p])


# Tokens


def test_attention_that_tokens_get_is_that_of_the_map():
    query, key, value = torch.randn(3, 2, 4, 7, 5).unbind()
    seen = []
    with AttentionTap(lambda q, k, v, attend: (seen.append(influence(q, k)), attend(q, k, v))[1]):
        made = torch.nn.functional.scaled_dot_product_attention(query, key, value)
    weights = (query @ key.transpose(-1, -2) / 5**0.5).softmax(-1)
    assert torch.allclose(made, weights @ value, atol=1e-5)
    assert torch.allclose(seen[0], weights.mean((1, 2)), atol=1e-6) and torch.allclose(seen[0].sum(1), torch.ones(2))


def chosen_tokens(monkeypatch, setup, choice, layer):
    """Runs by a choice of tokens; returns what entered a layer at its first partial step, whole and as chosen."""
    seen, own = [], Tokens.refresh

    def refresh(self, known, x, compute):
        part = []
        output = own(self, known, x, lambda chosen: (part.append(chosen), compute(chosen))[1])
        seen.append((known, x, part[0]))
        return output

    monkeypatch.setattr(Tokens, "refresh", refresh)
    rule = Rule(site="tokens", policy=Uniform(interval=4), forecast=Extrapolate(order=0), tokens=choice)
    with adaptcache.attach(setup.pipe, Schedule(name="tokens", rules=(rule,))):
        generated(setup)
    return seen[layer]


def test_toca_computes_the_tokens_that_get_most_attention_and_duca_those_of_the_largest_output(monkeypatch, setup):
    maps = []
    with AttentionTap(lambda q, k, v, attend: (maps.append((q, k)), attend(q, k, v))[1]):
        choice = TokenChoice(ratio=0.25, score="attention", freshness=0.0)
        _, x, part = chosen_tokens(monkeypatch, setup, choice, 0)
    query, key = maps[0]  # the first block's, at the first step
    weights = (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(-1).mean((1, 2))[0, -x.shape[1] :]
    best = weights.topk(round(x.shape[1] / 4)).indices
    assert torch.equal(part[0], x[0, best])
    monkeypatch.undo()
    _, x, part = chosen_tokens(monkeypatch, setup, TokenChoice(ratio=0.25, score="norm", freshness=0.0), 0)
    monkeypatch.undo()
    assert part.shape[1] == round(x.shape[1] / 4)
    other = built("Stable Diffusion 3")
    rule = Rule(site="tokens", policy=Uniform(interval=4), forecast=Extrapolate(order=0), tokens=choice)
    with (
        adaptcache.attach(other.pipe, Schedule(name="toca", rules=(rule,))),
        pytest.raises(AttachError, match="use the score 'change'"),
    ):
        generated(other)


def test_duca_chooses_by_the_norm_of_outputs():
    outputs = torch.tensor([[[1.0], [-5.0], [2.0], [3.0]]])
    tokens = Tokens.__new__(Tokens)
    choice = TokenChoice(ratio=0.5, score="norm", freshness=0.25)
    tokens.decision = SimpleNamespace(rule=SimpleNamespace(tokens=choice))
    known = LayerTokens(torch.zeros(1, 4, 1), outputs, torch.tensor([[0.0, 0.0, 9.0, 0.0]]))
    made = tokens.refresh(known, torch.full((1, 4, 1), 10.0), lambda chosen: chosen)
    assert made.flatten().tolist() == [1.0, 10.0, 10.0, 3.0]  # the largest, and the one that was left out longest


def test_toca_s_score_is_attention_of_norm_one_and_a_quarter_of_the_age_over_the_interval():
    rng, choice = torch.Generator().manual_seed(0), METHODS["toca"].parts[-1].params["tokens"]
    attention, ages = torch.rand(1, 40, generator=rng), torch.randint(0, 4, (1, 40), generator=rng).float()
    score = attention / attention.norm() + 0.25 * ages / METHODS["toca"].params["interval"]
    tokens, seen = Tokens.__new__(Tokens), []
    tokens.decision = SimpleNamespace(rule=SimpleNamespace(tokens=TokenChoice(**choice)))
    tokens.influence = attention
    x = torch.arange(40.0).view(1, 40, 1)
    known = LayerTokens(x, x, ages, tokens.attention_to("ff", x))
    tokens.refresh(known, x, lambda chosen: (seen.append(chosen), chosen)[1])
    assert seen[0].flatten().tolist() == score.topk(4).indices[0].tolist()
    assert known.ages[0, score.topk(4).indices[0]].eq(0).all()


@pytest.mark.parametrize("name", ["clusca", "resca"])
def test_clusters_are_sixteen_however_many_tokens_there_are(name):
    choice = TokenChoice(**METHODS[name].parts[-1].params["tokens"])
    assert [choice.count(tokens) for tokens in (9, 64, 4096)] == [9, 16, 16]


def test_clusters_follow_their_own_forecast_and_their_proxy_s_error():
    old, new = torch.zeros(1, 4, 1), torch.tensor([[[1.0], [2.0], [3.0], [4.0]]])
    known = LayerTokens(torch.zeros(1, 4, 1), new + (new - old), torch.zeros(1, 4), None, torch.tensor([[0, 0, 1, 1]]))
    tokens = Tokens.__new__(Tokens)
    tokens.decision = SimpleNamespace(
        rule=SimpleNamespace(tokens=TokenChoice(ratio=0.5, score="cluster", freshness=0.0, spread=1.0))
    )
    moved = torch.tensor([[[5.0], [0.0], [0.0], [7.0]]])  # the first and the last one moved most
    made = tokens.refresh(known, moved, lambda chosen: chosen * 2)
    # proxies are computed: 10 and 14; they differ from their forecasts, 2 and 8, by 8 and 6: so do the others
    assert made.flatten().tolist() == [10.0, 4.0 + 8.0, 6.0 + 6.0, 14.0]


def test_duca_computes_tokens_at_every_second_partial_step_and_tokencache_those_whose_positions_change(setup):
    sizes, choice = [], TokenChoice(ratio=0.5, score="norm", every=2)
    layer = setup.pipe.transformer.transformer_blocks[0].ff
    rule = Rule(site="tokens", policy=Uniform(interval=4), forecast=Extrapolate(order=0), tokens=choice)
    hook = layer.register_forward_hook(lambda module, args, out: sizes.append(args[0].shape[1]))
    with adaptcache.attach(setup.pipe, Schedule(name="duca", rules=(rule,))):
        generated(setup)
    length, seen = sizes[0], list(sizes)
    assert seen == [length, 1, round(length / 2), length, round(length / 2)]  # one is the trial of a token
    given = make_setup(setup.pipe, STEPS, dict(setup.call))
    prompts = PromptSet(tuple(setup.prompts[:1]))
    outputs = []
    hook.remove()
    hook = layer.register_forward_hook(lambda module, args, out: outputs.append(out))
    scores = {len(row): row for row in fit_positions(given, prompts)}
    hook.remove()
    assert set(scores) >= {length} and np.mean(scores[length]) == pytest.approx(1.0)
    schedule = fit_method(measure(given, prompts), "tokencache", 0.5)
    assert schedule.rules[-1].tokens.scores == tuple(scores.values())
    with adaptcache.attach(setup.pipe, schedule):
        assert all(value.isfinite().all() for value in generated(setup))


def test_positions_of_the_highest_scores_are_computed():
    tokens = Tokens.__new__(Tokens)
    choice = TokenChoice(ratio=0.5, score="position", freshness=0.0, scores=((1.0, 2.0), (0.5, 0.1, 3.0, 1.0)))
    tokens.decision = SimpleNamespace(rule=SimpleNamespace(tokens=choice))
    known = LayerTokens(torch.zeros(1, 4, 1), torch.zeros(1, 4, 1), torch.zeros(1, 4))
    made = tokens.refresh(known, torch.ones(1, 4, 1), lambda chosen: chosen)
    assert made.flatten().tolist() == [0.0, 0.0, 1.0, 1.0]
    with pytest.raises(AttachError, match="of 2, 4 positions, and a layer has 3"):
        known = LayerTokens(torch.zeros(1, 3, 1), torch.zeros(1, 3, 1), torch.zeros(1, 3))
        tokens.refresh(known, torch.ones(1, 3, 1), lambda chosen: chosen)


class Here:
    """A gate as far as a site needs it."""

    half = None

    def __init__(self):
        self.index, self.within = 0, {}

    def here(self):
        return Step(self.index, TIMES), 0

    def skipped(self):
        pass


def test_regions_give_chosen_tokens_what_the_whole_denoiser_gives_them(setup):
    calls, denoiser = [], setup.pipe.transformer
    hook = denoiser.register_forward_pre_hook(lambda module, args, kwargs: calls.append(kwargs), with_kwargs=True)
    full = generated(setup)
    hook.remove()
    choice = TokenChoice(ratio=0.5, score="deviation", freshness=0.1)
    rule = Rule(site="regions", policy=Uniform(interval=STEPS), forecast=Extrapolate(order=0), tokens=choice)
    gate, sizes = Here(), []
    site = Regions(denoiser, gate, rule)
    site.on_run_start(rule, TIMES, 0)
    count = denoiser.x_embedder.register_forward_pre_hook(lambda _, args: sizes.append(args[0].shape[1]))
    with torch.no_grad():
        whole = site.call_denoiser(denoiser.forward, **calls[3])[0]
        for gate.index in (1, 2):  # nothing has changed, so nothing changes
            assert torch.allclose(site.call_denoiser(denoiser.forward, **calls[3])[0], whole, atol=1e-5)
        drops = site.branches[0].drops.clone()
        gate.index = 3
        mixed = site.call_denoiser(denoiser.forward, **calls[5])[0]
        site.call_whole(denoiser.forward, calls[3], 0)
    count.remove()
    length = calls[3]["hidden_states"].shape[1]
    assert sizes == [length, *[round(length / 2)] * 3, length]
    assert drops.sum() == length and site.branches[0].drops.sum() == 1.5 * length  # those of the whole run count
    kept = (mixed == whole).all(-1)[0]
    assert int(kept.sum()) == length - round(length / 2)
    every = rule.model_copy(update={"tokens": choice.model_copy(update={"ratio": 1.0})})
    with adaptcache.attach(setup.pipe, Schedule(name="all", rules=(every,))):
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(generated(setup), full, strict=True))
    with adaptcache.attach(setup.pipe, Schedule.of("ras")) as handle:
        assert all(value.isfinite().all() for value in generated(setup)) and not same(generated(setup), full)
        assert len(handle.report().sites["regions"]) < STEPS
    with pytest.raises(AttachError, match="positions of tokens"):
        adaptcache.attach(built("PixArt-Sigma").pipe, Schedule.of("ras"))


@pytest.mark.parametrize("name", ["Chroma", "Flux 2"])
def test_regions_run_in_denoisers_whose_attention_has_a_mask(name):
    setup = built(name)
    full = generated(setup)
    choice = TokenChoice(ratio=1.0, score="deviation")
    rule = Rule(site="regions", policy=Uniform(interval=STEPS), forecast=Extrapolate(order=0), tokens=choice)
    with adaptcache.attach(setup.pipe, Schedule(name="all", rules=(rule,))):
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(generated(setup), full, strict=True))
    with adaptcache.attach(setup.pipe, Schedule.of("ras")) as handle:
        assert all(value.isfinite().all() for value in generated(setup)) and not same(generated(setup), full)
        assert len(handle.report().sites["regions"]) < 5


# By name


@pytest.mark.parametrize("name", ["block-caching", "eoc", "icc", "lazydit", "hyca", "omnicache", "adacache"])
def test_methods_are_fitted_by_name_and_run(name, setup, tmp_path):
    given = make_setup(setup.pipe, STEPS, dict(setup.call))
    prompts = PromptSet(tuple(setup.prompts[:2]))
    schedule = fit_method(measure(given, prompts), name, 0.5)
    loaded = Schedule.load(schedule.save(tmp_path / "s.json"))
    with adaptcache.attach(setup.pipe, loaded) as handle:
        assert all(value.isfinite().all() for value in generated(setup))
        sites = handle.report().sites
    spent = [len(steps) / STEPS for steps in sites.values()] or [len(handle.report().computed) / STEPS]
    assert np.mean(spent) <= 0.8


def test_a_method_without_settings_of_its_own_is_compared_by_name():
    from conftest import embedded, tiny_flux

    compared = adaptcache.compare(
        tiny_flux(), embedded(1), embedded(1, seed=5), [0.5], 6, methods=["hyca", "omnicache"], progress=False,
        height=16, width=16,
    )  # fmt: skip
    rows = {result.method: result for result in compared.results if result.budget == 0.5}
    assert rows.keys() == {"hyca", "omnicache"} and all(row.psnr and row.calls <= 3.1 for row in rows.values())
    with pytest.raises(LookupError, match="bwcache"):
        adaptcache.compare(tiny_flux(), embedded(1), embedded(1), [0.5], methods=["bwcach"])


# Published masks


def numbers():
    """Returns a router of three blocks and six steps."""
    return {f"{i}.prob": [(-1.0) ** (i + k) * 3 for k in range(6)] for i in range(6)}


def masks(steps=3):
    """Returns a schedule of ECAD's, of two double blocks and a single one."""
    double, single = ("full_attn", "full_ff", "full_ff_context"), ("single_attn", "single_proj_mlp", "single_proj_out")
    rows = {
        f"{i:03}": {name: {part: (i + len(part)) % 2 == 0 for part in parts} for name, parts in blocks}
        for i in range(steps)
        for blocks in [[("0", double), ("1", double), ("single_0", single)]]
    }
    return {"num_inference_steps": steps, "schedule": rows}


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda rows: rows["2.prob"].__setitem__(1, None), "row 2 of the router has None, which is no finite number"),
        (lambda rows: rows["2.prob"].__setitem__(1, True), "row 2 of the router has True, which is no finite number"),
        (lambda rows: rows["2.prob"].pop(), "row 2 of the router is .*: each row needs two numbers for each block"),
        (lambda rows: rows.update({"0.prob": 3}), "row 0 of the router is 3: each row needs"),
        (lambda rows: rows.pop("2.prob"), "number 2 is missing, or one is double, in 5 names like '0.prob'"),
        (lambda rows: rows.update({"00.prob": [1.0] * 6}), "number 6 is missing, or one is double, in 7 names"),
        (lambda rows: rows.update({"threshold": [0.1, 0.1]}), "'threshold' has no number where one is needed"),
        (lambda rows: rows.clear(), r"a router has a row of numbers for each step, got \[\]"),
        (
            lambda rows: rows.update({k: [0, 1] * 3 for k in rows}),
            "computes all: .* probabilities or a mask, take their",
        ),
    ],
)
def test_a_router_that_is_none_says_what_is_wrong(change, message, tmp_path):
    rows = numbers()
    assert read_schedule(written(tmp_path / "router.json", {"routers": rows})).rules[0].policy.rows[0] == "1" * 6
    change(rows)
    with pytest.raises(ScheduleError, match=message):
        read_schedule(written(tmp_path / "router.json", {"routers": rows}))


def test_a_router_with_nan_or_no_file_of_weights_is_refused(tmp_path):
    path = tmp_path / "router.pt"
    torch.save({"routers": {name: torch.full((6,), torch.nan) for name in numbers()}}, path)
    with pytest.raises(ScheduleError, match="row 0 of the router has nan, which is no finite number"):
        read_schedule(path)
    for content in (b"", b"abc", b"PK\x03\x04"):
        path.write_bytes(content)
        with pytest.raises(ScheduleError, match="holds no router, tensors by name"):
            read_schedule(path)


def each_step(change):
    return lambda whole: [change(step) for step in whole["schedule"].values()]


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda whole: whole.update(num_inference_steps=4),
            "'num_inference_steps' is 4, and the schedule has 3 steps",
        ),
        (lambda whole: whole["schedule"].pop("001"), "number 1 is missing, or one is double, in 2 names like '000'"),
        (
            lambda whole: whole["schedule"]["001"]["0"].update(full_ff="true"),
            "'full_ff' of block '0' is 'true' at step 1",
        ),
        (lambda whole: whole["schedule"]["001"]["0"].pop("full_ff"), "'full_ff' of block '0' is None at step 1"),
        (lambda whole: whole["schedule"]["001"].pop("1"), "'full_attn' of block '1' is None at step 1"),
        (
            lambda whole: whole["schedule"]["002"].update({"5": {"full_ff": True}}),
            "block '5' is True at step 2, at the first",
        ),
        (
            each_step(lambda step: step.update({"2": step.pop("1")})),
            "number 1 is missing, or one is double, in 2 names",
        ),
        (each_step(lambda step: step.update({"dual_1": step.pop("1")})), "'dual_1' has no number where one is needed"),
        (
            each_step(lambda step: step["0"].update(fullff=True)),
            "has a component 'fullff'; there are: attn1, full_attn",
        ),
    ],
)
def test_a_schedule_that_is_not_ecad_s_says_what_is_wrong(change, message, tmp_path):
    whole = masks()
    assert len(read_schedule(written(tmp_path / "ecad.json", {"cache_schedule": whole})).rules) == 2
    change(whole)
    with pytest.raises(ScheduleError, match=message):
        read_schedule(written(tmp_path / "ecad.json", {"cache_schedule": whole}))


def test_what_was_fitted_to_other_blocks_is_refused(setup):
    rule = Rule(site="blocks", policy=Table(rows=("1010",)), forecast=Affine(rows=((),) * 7), each=True)
    with pytest.raises(AttachError, match="has 7 rows, and FluxTransformer2DModel has"):
        adaptcache.attach(setup.pipe, Schedule(name="other", rules=(rule,)))
    gates = Gate(gates=(Linear(), Linear(), Linear()))
    for wrong in (
        {"policy": gates},
        {"policy": gates, "each": True, "forecast": Increment(layers=(Factors(), Factors()))},
    ):
        with pytest.raises(ValueError, match="blocks or layers: policy and forecast need as many, and `each`"):
            Rule(**{"site": "attention", "forecast": Extrapolate(order=0), **wrong})
