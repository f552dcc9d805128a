"""Compiled denoisers: no graph break and no recompilation by adaptcache, and the same images."""

import pytest
import torch
from torch._dynamo.utils import counters

import adaptcache
from adaptcache.sites.interceptor import ModuleInterceptor
from tests.pipelines.table import built, generated, planned

PLAN = [0, 1, 3]
EAGER = {"backend": "eager", "fullgraph": True}  # dynamo is what is tested: its graphs run as they are


def in_place(setup, **how):
    setup.pipe.transformer.compile(**how)


def wrapped(setup, **how):
    setup.pipe.transformer = torch.compile(setup.pipe.transformer, **how)


def by_block(setup, **how):
    setup.pipe.transformer.compile_repeated_blocks(**how)


WAYS = [in_place, wrapped, by_block]


@pytest.fixture(autouse=True)
def fresh_dynamo():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def graphs():
    """Returns the graphs dynamo made so far, and how often it had to leave one."""
    return counters["stats"]["unique_graphs"], sum(counters["graph_break"].values())


def close(a, b):
    return all(torch.allclose(x, y, rtol=1e-3, atol=1e-4) for x, y in zip(a, b, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("compiles", WAYS)
@pytest.mark.parametrize("name", ["Flux", "Wan 2.1"])
def test_compiled_before_attaching(name, compiles):
    setup = built(name)
    schedule = planned(setup, PLAN)
    with adaptcache.attach(setup.pipe, schedule):
        uncompiled = generated(setup)
    compiles(setup, **EAGER)
    plain = generated(setup)
    alone = graphs()
    with adaptcache.attach(setup.pipe, schedule) as handle:
        with torch.compiler.set_stance("fail_on_recompile"):
            assert close(generated(setup), uncompiled)
        assert handle.report().computed == PLAN
    assert graphs() == alone and alone[0] > 0 and alone[1] == 0
    with torch.compiler.set_stance("fail_on_recompile"):
        assert close(generated(setup), plain)


@pytest.mark.slow
@pytest.mark.parametrize("compiles", WAYS)
@pytest.mark.parametrize("name", ["Flux", "Wan 2.1"])
def test_compiled_after_attaching(name, compiles):
    setup = built(name)
    schedule = planned(setup, PLAN)
    compiles(setup, **EAGER)
    generated(setup)
    alone = graphs()
    torch._dynamo.reset()
    counters.clear()
    setup = built(name)
    with adaptcache.attach(setup.pipe, schedule) as handle:
        uncompiled = generated(setup)
        compiles(setup, **EAGER)
        assert close(generated(setup), uncompiled)
        assert handle.report().computed == PLAN
        assert graphs() == alone
        with torch.compiler.set_stance("fail_on_recompile"):
            generated(setup)
    with torch.compiler.set_stance("fail_on_recompile"):
        full = generated(setup)
    assert graphs() == alone and not close(full, uncompiled)


@pytest.mark.slow
@pytest.mark.parametrize("compiles", WAYS)
def test_calibrated_while_compiled(compiles):
    setup = built("Flux")
    compiles(setup, **EAGER)
    schedule = adaptcache.calibrate(setup.pipe, setup.prompts[:2], steps=6, budget=0.5, call=setup.call)
    assert graphs()[1] == 0
    full = generated(setup, sample=2)
    with adaptcache.attach(setup.pipe, schedule):
        cached = generated(setup, sample=2)
    assert float((cached[0] - full[0]).square().mean() / full[0].var()) < 0.01


@pytest.mark.slow
def test_inductor_gives_the_same_images():
    setup = built("Flux")
    schedule = planned(setup, PLAN)
    with adaptcache.attach(setup.pipe, schedule):
        uncompiled = generated(setup)
        setup.pipe.transformer.compile(fullgraph=True)
        assert close(generated(setup), uncompiled)


def test_compiling_in_place_leaves_no_guard_behind():
    setup = built("Flux")
    handle = adaptcache.attach(setup.pipe, planned(setup, PLAN))
    setup.pipe.transformer.compile(backend="eager")
    compiled = setup.pipe.transformer._compiled_call_impl
    generated(setup)
    assert ModuleInterceptor.of(setup.pipe.transformer)
    handle.close()
    assert setup.pipe.transformer._compiled_call_impl is compiled


def test_calls_of_a_wrapped_denoiser_are_counted_once():
    setup = built("Flux")
    setup.pipe.transformer = torch.compile(setup.pipe.transformer, backend="eager")
    with adaptcache.attach(setup.pipe, planned(setup, PLAN)) as handle:
        generated(setup)
    assert handle.report().made == len(PLAN)
