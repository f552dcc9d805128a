"""The sites `attention`, `cross-attention`, `temporal-attention` and `mlp`: all layers of a type."""

import flux
import pytest
import torch
from diffusers import PyramidAttentionBroadcastConfig

import adaptcache
from adaptcache.engines.diffusers.components import denoisers_of
from adaptcache.errors import AttachError
from adaptcache.policies.mask import Mask
from adaptcache.schedule.rule import LAYERS, Rule
from adaptcache.schedule.schedule import Schedule
from adaptcache.sites.denoisers import find_layers
from tests.pipelines.latte import latte
from tests.pipelines.table import TABLE, built, generated, grid_of, same

STEPS = 10
FAST = ("Flux", "PixArt-Sigma")


def masked(site, mask, forecast="extrapolate", **params):
    """Returns a rule that computes where the mask has ones."""
    return Rule(site=site, policy=Mask(compute_steps=tuple(map(bool, mask))), forecast={"type": forecast, **params})


def schedule(*rules):
    return Schedule(name="by hand", rules=rules)


class Replayed:
    """Reuse written out: the outputs of modules, by module, kept and given back by a mask."""

    def __init__(self, modules, mask):
        self.mask, self.kept, self.calls = mask, {}, {}
        for module in modules:
            self.calls[module], module.forward = 0, self.forward(module, module.forward)
        self.modules = list(modules)

    def forward(self, module, own):
        def forward(*args, **kwargs):
            index, self.calls[module] = self.calls[module], self.calls[module] + 1
            if self.mask[index]:
                self.kept[module] = own(*args, **kwargs)
            return self.kept[module]

        return forward

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for module in self.modules:
            del module.forward


@pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in TABLE]
)
def test_layers_that_are_computed_change_nothing_and_skipped_ones_are_replaced(name):
    setup = built(name)
    mask = [i % 3 != 2 for i in range(len(grid_of(setup)))]
    plain = generated(setup)
    types = {kind for d in denoisers_of(setup.pipe) for kind in LAYERS if find_layers(d, kind)}
    assert {"attention", "mlp"} <= types
    for kind in types:
        with adaptcache.attach(setup.pipe, schedule(masked(kind, [1] * len(mask)))):
            assert same(generated(setup), plain)
        with adaptcache.attach(setup.pipe, schedule(masked(kind, mask))) as handle:
            cached = generated(setup)
            assert all(value.isfinite().all() for value in cached) and not same(cached, plain)
            report = handle.report()
        assert report.made == sum(map(len, report.calls)) and kind in str(report)
        wanted = {i for i, flag in enumerate(mask) if flag}
        assert wanted <= set(report.sites[kind]) and len(report.sites[kind]) < len(mask)
    assert same(generated(setup), plain)


@pytest.mark.parametrize("kind", ["attention", "mlp"])
@pytest.mark.parametrize("name", ["Flux", "PixArt-Sigma", "Flux, two branches"])
def test_reuse_is_the_loop_written_out(name, kind):
    setup = built(name)
    mask = [i in (0, 1, 4) for i in range(len(grid_of(setup)))]
    with adaptcache.attach(setup.pipe, schedule(masked(kind, mask))):
        made = generated(setup)
    (denoiser,) = denoisers_of(setup.pipe)
    if setup.branches == 1:
        with Replayed(find_layers(denoiser, kind).values(), mask):
            assert same(generated(setup), made)
    else:  # one history a branch: a loop that mixes them gives something else
        twice = [flag for flag in mask for _ in range(2)]
        with Replayed(find_layers(denoiser, kind).values(), twice):
            assert not same(generated(setup), made)


def test_only_the_layers_of_the_type_are_skipped_and_types_have_plans_of_their_own():
    pipe = flux.pipeline()
    counts = {kind: 0 for kind in ("attention", "mlp")}
    for kind in counts:
        for layer in find_layers(pipe.transformer, kind).values():
            layer.register_forward_hook(lambda *_, kind=kind: counts.__setitem__(kind, counts[kind] + 1))
    attention, mlp = [1, 0, 0, 1, 0, 0, 1, 0, 0, 1], [1, 1, 0, 1, 1, 0, 1, 1, 0, 1]
    both = schedule(masked("attention", attention), masked("mlp", mlp, "taylor", order=1))
    with adaptcache.attach(pipe, both) as handle:
        first = flux.run(pipe, STEPS)
        assert handle.report().sites == {
            "attention": (0, 3, 6, 9), "mlp": (0, 1, 3, 4, 6, 7, 9),
        }  # fmt: skip
        assert torch.equal(flux.run(pipe, STEPS), first)
    sizes = [len(find_layers(pipe.transformer, kind)) for kind in counts]
    assert sizes == [4, 6]  # two blocks of each kind: four attentions, ff, ff_context and proj_mlp
    assert counts == {"attention": 2 * 4 * 4, "mlp": 2 * 7 * 6}


def test_close_leaves_nothing_and_a_second_handle_is_refused():
    pipe = flux.pipeline()
    full = flux.run(pipe, STEPS)
    fora = Schedule.of("fora", interval=2)
    handle = adaptcache.attach(pipe, fora)
    other = type(pipe)(**pipe.components)
    other.scheduler = type(pipe.scheduler)()
    with pytest.raises(AttachError, match="already"):
        adaptcache.attach(other, fora)
    assert not torch.equal(flux.run(pipe, STEPS), full)
    handle.close()
    assert all("_compiled_call_impl" not in vars(module) for module in pipe.transformer.modules())
    assert torch.equal(flux.run(pipe, STEPS), full)


def test_a_run_that_is_broken_off_leaves_the_next_one_as_it_was():
    pipe = flux.pipeline()

    def stop(pipe, step, *_):
        if step == 4:
            raise KeyboardInterrupt
        return {}

    with adaptcache.attach(pipe, Schedule.of("pab")) as handle:
        whole = flux.run(pipe, STEPS)
        with pytest.raises(KeyboardInterrupt):
            pipe(
                prompt_embeds=torch.randn(1, 5, 16), pooled_prompt_embeds=torch.randn(1, 8),
                height=16, width=16, num_inference_steps=STEPS, output_type="latent",
                callback_on_step_end=stop,
            )  # fmt: skip
        assert torch.equal(flux.run(pipe, STEPS), whole)
        assert handle.report().sites["attention"][0] == 0


def test_compiled_blocks_hide_their_layers_and_compiled_layers_do_not():
    pipe = flux.pipeline()
    rule = schedule(masked("attention", [1, 0]))
    with adaptcache.attach(pipe, rule):
        cached = flux.run(pipe, STEPS)
    for layer in find_layers(pipe.transformer, "attention").values():
        layer.compile(backend="eager")
    with adaptcache.attach(pipe, rule):
        assert torch.allclose(flux.run(pipe, STEPS), cached, atol=1e-5)
    block = pipe.transformer.transformer_blocks[1]
    with adaptcache.attach(pipe, rule):
        block.compile(backend="eager")  # after attach: noticed when the run begins
        with pytest.raises(AttachError, match=r"transformer_blocks\.1 is compiled as a whole"):
            flux.run(pipe, STEPS)
    with pytest.raises(AttachError, match=r"transformer_blocks\.1 is compiled as a whole"):
        adaptcache.attach(pipe, rule)


def test_dynamic_policies_look_at_the_first_layer():
    pipe = flux.pipeline()
    counts = []
    for threshold in (0.0, 0.4, 9.0):
        rule = Rule(
            site="attention", policy={"type": "probe", "threshold": threshold, "on": "input"},
            forecast={"type": "extrapolate"},
        )  # fmt: skip
        with adaptcache.attach(pipe, schedule(rule)) as handle:
            flux.run(pipe, STEPS)
            counts.append(len(handle.report().sites["attention"]))
    assert counts[0] == STEPS and counts[-1] == 1 and counts == sorted(counts, reverse=True)


@pytest.mark.parametrize(
    "params, message",
    [
        (dict(forecast={"type": "offset"}), "what entered"),
        (dict(head=1), "no blocks"),
        (dict(policy={"type": "probe", "threshold": 1}), "no blocks"),
    ],
)
def test_what_a_layer_cannot_have_is_refused(params, message):
    given = dict(policy={"type": "uniform"}, forecast={"type": "extrapolate"}) | params
    with pytest.raises(ValueError, match=message):
        Rule(site="attention", **given)


def test_a_denoiser_without_such_layers_is_refused():
    with pytest.raises(AttachError, match="no layers for the site 'cross-attention'"):
        adaptcache.attach(flux.pipeline(), Schedule.of("t-gate"))


def test_types_of_layers_go_together_and_with_nothing_else():
    attention, mlp = masked("attention", [1, 0]), masked("mlp", [1, 0])
    schedule(attention, mlp)
    for other in (attention, masked("step", [1]), masked("blocks", [1]), masked("deep", [1])):
        with pytest.raises(ValueError, match="overlap"):
            schedule(attention, other)


def test_t_gate_keeps_the_cross_attention_after_its_gate():
    setup = built("PixArt-Sigma")
    with adaptcache.attach(setup.pipe, Schedule.of("t-gate", warm_up=2)) as handle:
        made = generated(setup)
        assert handle.report().sites == {"cross-attention": (0, 1)}
    (denoiser,) = denoisers_of(setup.pipe)
    with Replayed(find_layers(denoiser, "cross-attention").values(), [1, 1] + [0] * 20):
        assert same(generated(setup), made)


def broadcast(pipe, **ranges):
    """Enables diffusers' Pyramid Attention Broadcast."""
    windows = {f"{kind}_attention_timestep_skip_range": (100, 800) for kind in ("spatial", "temporal", "cross")}
    config = PyramidAttentionBroadcastConfig(
        **{f"{kind}_attention_block_skip_range": value for kind, value in ranges.items()}, **windows,
        # By default "transformer_blocks" is searched for, which is in "temporal_transformer_blocks" as well:
        # diffusers then takes attention in time for attention in space, and never looks at its range.
        spatial_attention_block_identifiers=("^transformer_blocks", "^single_transformer_blocks"),
        current_timestep_callback=lambda: pipe.current_timestep,
    )  # fmt: skip
    pipe.transformer.enable_cache(config)


@pytest.mark.parametrize(
    "make, ranges",
    [
        (lambda: built("Flux"), dict(spatial=2)),
        (lambda: built("CogVideoX"), dict(spatial=3)),
        (latte, dict(spatial=2, temporal=3, cross=4)),
    ],
    ids=["Flux", "CogVideoX", "Latte"],
)
def test_pab_is_that_of_diffusers(make, ranges):
    setup = make()
    setup.pipe.set_progress_bar_config(disable=True)
    steps = 12
    full = generated(setup, num_inference_steps=steps)
    names = {"spatial": "attention", "temporal": "temporal-attention", "cross": "cross-attention"}
    intervals = {names[kind]: value for kind, value in ranges.items()}
    with adaptcache.attach(setup.pipe, Schedule.of("pab", interval=intervals)) as handle:
        made = generated(setup, num_inference_steps=steps)
        assert set(handle.report().sites) == set(intervals)
    assert not same(made, full)
    broadcast(setup.pipe, **ranges)
    peer = generated(setup, num_inference_steps=steps)
    setup.pipe.transformer.disable_cache()
    assert all(torch.allclose(a, b, atol=2e-5, rtol=1e-5) for a, b in zip(made, peer, strict=True))
