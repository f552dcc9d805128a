"""The site `blocks`: exact where it must be, clean when closed, and the same as an explicit loop."""

import inspect

import diffusers
import flux
import pytest
import torch
from torch import nn

import adaptcache
from adaptcache.errors import AttachError
from adaptcache.schedule.rule import Rule
from adaptcache.schedule.schedule import Schedule
from adaptcache.sites.denoisers import DENOISERS, find_spec
from adaptcache.sites.interceptor import ModuleInterceptor
from tests.pipelines.table import built, generated, same

STEPS = 10


def schedule(**params):
    mask = params.pop("mask", [1, 1, 0, 0, 1, 0, 0, 0, 1, 0])
    return Schedule.of("scm", compute_steps=tuple(map(bool, mask)), **{"head": 0, **params})


def blocks_of(pipe):
    return [*pipe.transformer.transformer_blocks, *pipe.transformer.single_transformer_blocks]


def counted(pipe):
    """Returns how often each block is really run from now on."""
    counts = [0] * len(blocks_of(pipe))

    def hook(number):
        def count(*_):
            counts[number] += 1

        return count

    for number, block in enumerate(blocks_of(pipe)):
        block.register_forward_hook(hook(number))
    return counts


def test_computing_every_step_changes_nothing():
    pipe = flux.pipeline()
    full = flux.run(pipe, STEPS)
    for head, tail in [(0, 0), (1, 0), (1, 2), (0, 1)]:
        with adaptcache.attach(pipe, schedule(mask=[1] * STEPS, head=head, tail=tail)):
            assert torch.equal(flux.run(pipe, STEPS), full)


@pytest.mark.parametrize("head, tail", [(0, 0), (1, 0), (0, 1), (1, 1), (3, 0)])
def test_only_the_blocks_of_the_site_are_skipped(head, tail):
    pipe = flux.pipeline()
    counts = counted(pipe)
    with adaptcache.attach(pipe, schedule(head=head, tail=tail)) as handle:
        flux.run(pipe, STEPS)
        assert handle.report().computed == [0, 1, 4, 8]
    assert counts == [STEPS if i < head or i >= 4 - tail else 4 for i in range(4)]


def test_every_run_starts_afresh_and_closing_leaves_nothing():
    pipe = flux.pipeline()
    full = flux.run(pipe, STEPS)
    handle = adaptcache.attach(pipe, schedule())
    first = flux.run(pipe, STEPS)
    assert not torch.equal(first, full) and torch.equal(flux.run(pipe, STEPS), first)
    handle.close()
    assert torch.equal(flux.run(pipe, STEPS), full)
    assert not any(ModuleInterceptor.of(module) for module in pipe.transformer.modules())
    assert all("_compiled_call_impl" not in vars(block) for block in blocks_of(pipe))


def test_a_second_attach_and_a_site_with_nothing_left_are_refused_and_change_nothing():
    pipe = flux.pipeline()
    with adaptcache.attach(pipe, schedule()):
        other = diffusers.FluxPipeline(**pipe.components)
        other.scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
        with pytest.raises(AttachError, match="already"):
            adaptcache.attach(other, schedule())
    with pytest.raises(AttachError, match="nothing is left"):
        adaptcache.attach(pipe, schedule(head=2, tail=2))
    assert not any(ModuleInterceptor.of(module) for module in pipe.transformer.modules())
    adaptcache.attach(pipe, schedule()).close()


def test_a_denoiser_compiled_as_a_whole_is_refused_and_compiled_blocks_are_not():
    pipe = flux.pipeline()
    plain = pipe.transformer
    pipe.transformer = torch.compile(plain)
    with pytest.raises(AttachError, match="compile its blocks"):
        adaptcache.attach(pipe, schedule())
    pipe.transformer = plain
    with adaptcache.attach(pipe, schedule()):
        cached = flux.run(pipe, STEPS)
    for block in blocks_of(pipe):
        block.compile(backend="eager")
    with adaptcache.attach(pipe, schedule()):
        assert torch.allclose(flux.run(pipe, STEPS), cached, atol=1e-5)
    assert all(vars(block)["_compiled_call_impl"] is not None for block in blocks_of(pipe))


class TeaCache(nn.Module):
    """A FluxTransformer2DModel with TeaCache written out, as the paper's code has it."""

    def __init__(self, inner, coefficients, threshold, steps):
        super().__init__()
        self.inner, self.coefficients, self.threshold, self.steps = inner, coefficients, threshold, steps
        self.config, self.dtype, self.device = inner.config, inner.dtype, torch.device("cpu")
        self.count, self.total, self.before, self.residual, self.mask = 0, 0.0, None, None, []

    def cache_context(self, name):
        return self.inner.cache_context(name)

    def forward(self, hidden_states, timestep, guidance, pooled_projections, encoder_hidden_states, **kwargs):
        inner = self.inner
        x = inner.x_embedder(hidden_states)
        temb = inner.time_text_embed(timestep.to(x.dtype) * 1000, guidance * 1000, pooled_projections)
        seen = inner.transformer_blocks[0].norm1(x, emb=temb)[0]
        compute = self.count in (0, self.steps - 1)
        if not compute:
            change = float((seen - self.before).abs().mean() / self.before.abs().mean())
            self.total += torch.tensor(self.coefficients).dot(change ** torch.arange(4, -1, -1.0)).item()
            compute = self.total >= self.threshold
        self.before, self.count = seen, self.count + 1
        self.mask.append(compute)
        if compute:
            self.total, text, out = 0.0, inner.context_embedder(encoder_hidden_states), x
            ids = torch.cat((kwargs["txt_ids"], kwargs["img_ids"]))
            rope = inner.pos_embed(ids)
            for block in [*inner.transformer_blocks, *inner.single_transformer_blocks]:
                text, out = block(out, text, temb=temb, image_rotary_emb=rope)
            self.residual = out - x
        return (inner.proj_out(inner.norm_out(x + self.residual, temb)),)


@pytest.mark.parametrize("threshold", [0.3, 0.6, 1.0])
def test_teacache_is_the_loop_written_out(threshold):
    pipe = flux.pipeline()
    with adaptcache.attach(pipe, Schedule.of("teacache", model="flux", threshold=threshold)) as handle:
        made = flux.run(pipe, STEPS)
        computed = handle.report().computed
    rule = Schedule.of("teacache", model="flux", threshold=threshold).rules[0]
    loop = TeaCache(pipe.transformer, rule.policy.coefficients, threshold, STEPS)
    pipe.transformer = loop
    assert torch.allclose(flux.run(pipe, STEPS), made, atol=2e-5)
    assert computed == [i for i, flag in enumerate(loop.mask) if flag] and len(computed) < STEPS


def test_two_branches_are_skipped_together_and_kept_apart():
    pipe = flux.pipeline()
    g = torch.Generator().manual_seed(3)
    given = dict(
        prompt_embeds=torch.randn(1, 5, 16, generator=g), pooled_prompt_embeds=torch.randn(1, 8, generator=g),
        negative_prompt_embeds=torch.randn(1, 5, 16, generator=g), true_cfg_scale=3.0, height=16, width=16,
        negative_pooled_prompt_embeds=torch.randn(1, 8, generator=g), num_inference_steps=STEPS,
        output_type="latent",
    )  # fmt: skip

    def run(**more):
        return pipe(**given, **more, generator=torch.Generator().manual_seed(0)).images

    full = run()
    with adaptcache.attach(pipe, Schedule.of("fbcache", threshold=0.4)) as handle:
        cached = run()
        calls = handle.report().calls
    assert all(len(branches) == 2 and branches[0] == branches[1] for branches in calls)
    assert any(not branches[0] for branches in calls)
    off = (cached - full).norm() / full.norm()
    assert 0 < off < 0.5


def test_speca_computes_more_the_less_it_believes():
    counts = []
    for threshold in (0.1, 0.6, 9.0):
        pipe = flux.pipeline()
        with adaptcache.attach(pipe, Schedule.of("speca", threshold=threshold, least=0.0)) as handle:
            flux.run(pipe, STEPS)
            counts.append(len(handle.report().computed))
    assert counts[0] > counts[-1] and counts == sorted(counts, reverse=True)


def test_unknown_models_are_met_with_the_site_that_needs_no_knowledge():
    with pytest.raises(AttachError, match="site 'step'"):
        find_spec(nn.Linear(1, 1))
    heir = type("Heir", (diffusers.FluxTransformer2DModel,), {})
    assert find_spec(object.__new__(heir)) is DENOISERS["FluxTransformer2DModel"]


@pytest.mark.parametrize("name", DENOISERS)
def test_the_models_of_the_table_exist_and_return_what_it_says(name):
    if (kind := getattr(diffusers, name, None)) is None:
        pytest.skip(f"diffusers {diffusers.__version__} has none")
    source = inspect.getsource(inspect.getmodule(kind))
    for attribute in DENOISERS[name].blocks:
        assert f"self.{attribute} = nn.ModuleList(" in source
    left = ", ".join(DENOISERS[name].streams)
    assert f"{left} = block(" in source or f"hidden_states = {DENOISERS[name].blocks[-1]}" in source or name in UNUSUAL


UNUSUAL = {"WanTransformer3DModel"}  # it returns the image's hidden states, but names nothing in between


def group(span, mask, **params):
    policy = {"type": "mask", "compute_steps": list(map(bool, mask))}
    return Rule(site="blocks", span=span, policy=policy, forecast={"type": "extrapolate"}, **params)


def written_out(pipe, first, last, mask, output):
    """Reuse of a group of double blocks written out, until the returned function is called."""
    blocks, step, kept = pipe.transformer.transformer_blocks[first : last + 1], [-1], {}

    def forward(number, own):
        def run(hidden_states, encoder_hidden_states, **kwargs):
            if number == 0:
                step[0] += 1
                kept["in"] = encoder_hidden_states, hidden_states
            if mask[step[0]]:
                left = own(hidden_states, encoder_hidden_states, **kwargs)
            else:
                left = encoder_hidden_states, hidden_states
            if number == len(blocks) - 1:
                if mask[step[0]]:
                    kept["added"] = [b - a for a, b in zip(kept["in"], left, strict=True)]
                    kept["left"] = left
                elif output:
                    left = kept["left"]
                else:
                    left = tuple(a + b for a, b in zip(left, kept["added"], strict=True))
            return left

        return run

    for number, block in enumerate(blocks):
        block.forward = forward(number, block.forward)
    return lambda: [block.__dict__.pop("forward") for block in blocks]


@pytest.mark.parametrize("output", [None, True])
def test_a_group_in_the_middle_is_the_loop_written_out(output):
    pipe = flux.pipeline(double=4, single=2)
    mask = [1, 0, 0, 1, 0, 1, 1, 0, 0, 1]
    counts = counted(pipe)
    with adaptcache.attach(pipe, Schedule(name="g", rules=(group((0.2, 0.5), mask, output=output),))):
        made = flux.run(pipe, STEPS)
    assert counts == [STEPS, 5, 5, STEPS, STEPS, STEPS]
    undo = written_out(pipe, 1, 2, mask, output)
    assert torch.allclose(flux.run(pipe, STEPS), made, atol=1e-6)
    undo()
    assert not torch.equal(flux.run(pipe, STEPS), made)


def test_delta_dit_skips_the_rear_first_and_then_the_front():
    pipe = flux.pipeline(double=2, single=2)
    counts = counted(pipe)
    with adaptcache.attach(pipe, Schedule.of("delta-dit", interval=2)) as handle:
        made = flux.run(pipe, STEPS)
        report = handle.report()
        assert torch.equal(flux.run(pipe, STEPS), made)
    late = [i for i, t in enumerate(1 - i / STEPS for i in range(STEPS)) if t < 0.5]
    front, rear = (report.sites[f"blocks ({span})"] for span in ("0.0, 0.5", "0.5, 1.0"))
    assert set(rear) == {i for i in range(STEPS) if i % 2 == 0 or i >= late[0] - 1}
    assert set(front) == {i for i in range(STEPS) if i % 2 == 0 or i < late[0]}
    assert counts == [2 * len(front)] * 2 + [2 * len(rear)] * 2


@pytest.mark.parametrize("method", ["delta-dit", "speca", "fora"])
def test_one_negative_text_serves_all_images(method):
    pipe, random = flux.pipeline(), torch.Generator().manual_seed(0)
    text, pooled = torch.randn(3, 5, 16, generator=random), torch.randn(3, 8, generator=random)
    rows = {"prompts": [0, 1], "one": [2], "two": [2, 2]}
    pipe.encode_prompt = lambda prompt, **_: (text[rows[prompt]], pooled[rows[prompt]], torch.zeros(5, 3))

    def made(negative):
        latents = torch.randn(2, 64, 16, generator=torch.Generator().manual_seed(1))
        return pipe(
            "prompts", negative_prompt=negative, true_cfg_scale=2.0, num_inference_steps=STEPS, height=16, width=16,
            num_images_per_prompt=2, latents=latents, output_type="latent", return_dict=False,
        )[0]  # fmt: skip

    with adaptcache.attach(pipe, Schedule.of(method)):
        torch.testing.assert_close(made("one"), made("two"))


def test_blockdance_reuses_what_left_the_front_in_late_steps():
    pipe = flux.pipeline(double=2, single=2)
    counts = counted(pipe)
    with adaptcache.attach(pipe, Schedule.of("blockdance", window=(0.05, 0.75))) as handle:
        flux.run(pipe, STEPS)
        made = handle.report().sites["blocks"]
    assert made[:4] == (0, 1, 2, 4) and counts == [len(made)] * 3 + [STEPS]


def test_spans_that_have_no_block_and_groups_with_a_probe_are_refused():
    pipe = flux.pipeline()
    with pytest.raises(AttachError, match="has none of 4 blocks"):
        adaptcache.attach(pipe, Schedule(name="g", rules=(group((0.5, 0.6), [1]),)))
    with pytest.raises(ValueError, match="has to rise"):
        group((0.5, 0.5), [1])
    with pytest.raises(ValueError, match="no head and no tail"):
        group((0.5, 0.6), [1], head=1)
    Schedule(name="g", rules=(group((0.5, 1), [1]), group((0, 0.5), [1])))
    with pytest.raises(ValueError, match="overlap"):
        Schedule(name="g", rules=(group((0.4, 1), [1]), group((0, 0.5), [1])))
    probed = Schedule.of("teacache", model="flux").rules[0].model_copy(update={"span": (0.5, 1.0)})
    with pytest.raises(ValueError, match="skip a probe"):
        Schedule(name="g", rules=(probed, group((0, 0.5), [1])))


def test_overlapping_sites_are_an_error():
    step = Schedule.of("easycache").rules[0]
    with pytest.raises(ValueError, match="overlap"):
        Schedule(name="both", rules=(step, schedule().rules[0]))
    assert isinstance(step, Rule)


class _Swapping(torch.nn.Module):
    def forward(self, hidden_states, encoder_hidden_states, temb=None):
        if temb is None:
            return hidden_states
        return encoder_hidden_states, hidden_states


class _Plain(torch.nn.Module):
    def forward(self, x, freqs):
        return x + 1


class _Unknown(torch.nn.Module):
    def forward(self, x):
        return [x], {}


class _Handing(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.block = _Swapping()

    def forward(self, hidden_states, encoder_hidden_states, temb=None):
        return self.block(hidden_states, encoder_hidden_states, temb)


class _Stack(torch.nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.layers = torch.nn.ModuleList([kind(), kind()])


def test_blocks_of_a_class_that_nobody_listed_are_found_by_structure():
    spec = find_spec(_Stack(_Swapping))
    assert spec.blocks == ("layers",) and spec.streams == ("encoder_hidden_states", "hidden_states")
    assert find_spec(_Stack(_Handing)) == spec
    plain = find_spec(_Stack(_Plain))
    assert plain.streams == ("hidden_states",) and plain.named == {"hidden_states": "x"}
    with pytest.raises(AttachError, match=r"what _Unknown take and return cannot be told.*use the site 'step'"):
        find_spec(_Stack(_Unknown))
    with pytest.raises(AttachError, match="it has no list of blocks"):
        find_spec(torch.nn.Linear(1, 1))


def test_a_probe_ends_where_the_text_is_put_before_the_image():
    for name in ("Chroma", "Flux 2"):  # with one block before, after which the streams are one sequence
        setup = built(name)
        full = generated(setup)
        with adaptcache.attach(setup.pipe, Schedule.of("fbcache", threshold=0.0)):
            assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(generated(setup), full, strict=True))
        with adaptcache.attach(setup.pipe, Schedule.of("fbcache", threshold=9.0)) as handle:
            assert all(value.isfinite().all() for value in generated(setup)) and handle.report().computed == [0]


@pytest.mark.parametrize(
    "name, method",
    [
        ("Ideogram4Pipeline", "fbcache"),  # whose second denoiser has the calls for guidance alone
        ("Ideogram4Pipeline", "foresight"),
        ("Cosmos3OmniPipeline", "goc"),  # whose blocks have names of their own for text and image
        ("Cosmos3OmniPipeline", "dicache"),  # and no batch, but as many rows as tokens
        ("Krea2Pipeline", "adacache"),  # some of whose layers are given the text of several layers as a batch
    ],
)
def test_methods_run_where_branches_streams_and_batches_are_unlike(name, method):
    setup = built(name)
    full = generated(setup)
    with adaptcache.attach(
        setup.pipe,
        Schedule.of(method, **({"threshold": 1e9} if method in ("fbcache", "foresight", "dicache") else {})),
    ):
        made = generated(setup)
    assert all(value.isfinite().all() for value in made)
    assert same(generated(setup), full) and (method == "adacache" or not same(made, full))
