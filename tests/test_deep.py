"""The site `deep`: DeepCache, against the same written out, on U-Nets in real pipelines."""

import pytest

import adaptcache
from adaptcache.engines.diffusers.components import denoisers_of
from adaptcache.errors import AttachError
from adaptcache.policies.mask import Mask
from adaptcache.schedule.rule import Rule
from adaptcache.schedule.schedule import Schedule
from adaptcache.sites.deep import find_deep
from adaptcache.sites.interceptor import ModuleInterceptor
from tests.pipelines.table import built, generated, grid_of, same
from tests.pipelines.unet import UNET

FAST = ("Stable Diffusion 1.5",)
every_unet = pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in UNET]
)


def schedule(mask, head=0):
    rule = Rule(
        site="deep", head=head, policy=Mask(compute_steps=tuple(map(bool, mask))),
        forecast={"type": "extrapolate"},
    )  # fmt: skip
    return Schedule(name="deep", rules=(rule,))


class DeepCache:
    """DeepCache as its authors run it: layer by layer, all that is deeper returns what it returned last."""

    def __init__(self, unet, branch, mask):
        self.mask, self.kept, self.patched, self.step = mask, {}, [], -1
        per_block = len(unet.down_blocks[0].resnets) + 1  # its downsampler is one too
        self.block, self.layer = branch // per_block, branch % per_block
        self.patch(unet, lambda: False, counts=True)
        for i, block in enumerate(unet.down_blocks):
            count = len(block.resnets)
            for j in range(count):
                self.patch_layer(block, j, self.deep(i, j, down=True))
            for sampler in block.downsamplers or ():
                self.patch(sampler, self.deep(i, count, down=True))
        self.patch(unet.mid_block, lambda: True)
        for i, block in enumerate(reversed(unet.up_blocks)):
            count = len(block.resnets)
            for j in range(count):
                self.patch_layer(block, j, self.deep(i, count - 1 - j, down=False))
            for sampler in block.upsamplers or ():
                self.patch(sampler, self.deep(i, 0, down=False))

    def deep(self, block, layer, down):
        if block != self.block:
            found = block > self.block
        else:
            found = layer >= self.layer if down else layer > self.layer
        return lambda: found

    def patch_layer(self, block, number, deep):
        self.patch(block.resnets[number], deep)
        if attentions := getattr(block, "attentions", None):
            self.patch(attentions[number], deep)

    def patch(self, module, deep, counts=False):
        own = module.forward

        def forward(*args, **kwargs):
            if counts:
                self.step += 1
            if deep() and not self.mask[self.step]:
                return self.kept[module]
            self.kept[module] = own(*args, **kwargs)
            return self.kept[module]

        module.forward = forward
        self.patched.append(module)

    def close(self):
        for module in self.patched:
            del module.forward


@every_unet
@pytest.mark.parametrize("branch", [0, 1, 2])
def test_deepcache_is_the_loop_of_its_authors(name, branch):
    setup = built(name)
    mask = [i % 3 == 0 for i in range(len(grid_of(setup)))]
    plain = generated(setup)
    with adaptcache.attach(setup.pipe, schedule([1] * len(mask), branch)):
        assert same(generated(setup), plain)
    with adaptcache.attach(setup.pipe, schedule(mask, branch)) as handle:
        made = generated(setup)
        assert same(generated(setup), made)
        report = handle.report()
    assert report.sites == {"deep": tuple(i for i, flag in enumerate(mask) if flag)}
    assert report.made == sum(map(len, report.calls)) and not same(made, plain)
    loop = DeepCache(setup.pipe.unet, branch, mask)
    peer = generated(setup)
    loop.close()
    assert same(peer, made)
    assert same(generated(setup), plain)
    assert not any(ModuleInterceptor.of(module) for module in setup.pipe.unet.modules())


def test_deeper_heads_leave_less_to_skip():
    (unet,) = denoisers_of(built("Stable Diffusion 1.5").pipe)
    sizes = [sum(p.numel() for module in find_deep(unet, head) for p in module.parameters()) for head in range(4)]
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == 4
    assert find_deep(unet, 3) == [unet.mid_block]
    with pytest.raises(AttachError, match="3 layers on its way down"):
        find_deep(unet, 4)


def test_the_skipped_modules_are_not_run():
    setup = built("Stable Diffusion 1.5")
    mask = [i % 3 == 0 for i in range(len(grid_of(setup)))]
    counts = {}
    for module in find_deep(setup.pipe.unet, 1):
        module.register_forward_hook(lambda own, *_: counts.__setitem__(own, counts.get(own, 0) + 1))
    with adaptcache.attach(setup.pipe, schedule(mask, 1)):
        generated(setup)
    assert set(counts.values()) == {sum(mask)}


def test_a_transformer_has_no_deep_part_and_a_compiled_block_hides_it():
    with pytest.raises(AttachError, match="use 'blocks'"):
        adaptcache.attach(built("Flux").pipe, Schedule.of("deepcache"))
    setup = built("Stable Diffusion 1.5")
    setup.pipe.unet.up_blocks[-1].compile(backend="eager")
    with pytest.raises(AttachError, match=r"up_blocks\.1 is compiled"):
        adaptcache.attach(setup.pipe, Schedule.of("deepcache"))


def test_deepcache_goes_with_the_named_method():
    rule = Schedule.of("deepcache", interval=5, head=2).rules[0]
    assert (rule.site, rule.head, rule.policy.interval) == ("deep", 2, 5)
