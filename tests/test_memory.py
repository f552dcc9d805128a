"""What a run keeps, what it waits for, and denoisers whose weights come and go."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import adaptcache
from adaptcache.forecasts.extrapolate import Extrapolate
from tests.pipelines.table import built, counted, generated, planned

PLAN = [0, 1, 3]


def same(a, b):
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("depth", [1, 3])
def test_a_run_keeps_the_outputs_its_forecast_needs_and_the_first_latents(depth):
    setup = built("Stable Diffusion 1.5")
    kept = []

    def callback(pipe, step, timestep, tensors):
        history = handle._runner.history
        tracks = [tensor for line in history.lines.values() for tensor in (*line.past, line.x0)]
        kept.append({tensor.data_ptr() for tensor in tracks})
        return tensors

    schedule = planned(setup, [0, 1, 2, 3], Extrapolate(order=depth - 1))
    with adaptcache.attach(setup.pipe, schedule) as handle:
        generated(setup, callback_on_step_end=callback)
    assert max(map(len, kept)) == depth + 1
    assert kept[-1] == set()  # the last step has ended the run


class Reads(TorchDispatchMode):
    """Counts how often a number is read from a tensor, for which a device has to be waited for."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        self.count += operator is torch.ops.aten._local_scalar_dense.default
        return operator(*args, **kwargs or {})


@pytest.mark.parametrize("name", ["Flux", "Stable Diffusion 1.5", "Wan 2.1"])
def test_a_plan_reads_nothing_from_the_device_but_the_grid(name):
    setup = built(name)
    schedule = planned(setup, PLAN)
    with Reads() as full:
        generated(setup)
    with adaptcache.attach(setup.pipe, schedule), Reads() as cached:
        generated(setup)
    assert cached.count <= full.count + 1


def group_offloaded(transformer):
    cpu = torch.device("cpu")
    transformer.enable_group_offload(onload_device=cpu, offload_device=cpu, offload_type="leaf_level")


def layerwise_cast(transformer):
    transformer.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)


@pytest.mark.parametrize("offload", [group_offloaded, layerwise_cast])
def test_weights_that_come_and_go_are_not_fetched_at_skipped_steps(offload):
    setup = built("Flux")
    offload(setup.pipe.transformer)
    full = generated(setup)
    schedule = adaptcache.calibrate(setup.pipe, setup.prompts[:2], steps=6, budget=0.5, call=setup.call)
    everything = planned(setup, range(6))
    with adaptcache.attach(setup.pipe, everything):
        assert same(generated(setup), full)
    with counted(setup.pipe) as calls, adaptcache.attach(setup.pipe, schedule) as handle:
        cached = generated(setup)
    assert len(calls) == 3 == handle.report().made
    assert float((cached[0] - full[0]).square().mean() / full[0].var()) < 0.01
    assert same(generated(setup), full)
