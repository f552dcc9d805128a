"""What a run keeps, what it waits for, and denoisers whose weights come and go."""

import accelerate
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import adaptcache
from adaptcache.forecasts.base import Known, Weights, weighted_sum
from adaptcache.forecasts.extrapolate import Extrapolate
from tests.pipelines.table import built, counted, generated, planned, same

PLAN = [0, 1, 3]


@pytest.mark.parametrize("depth", [1, 3])
def test_a_run_keeps_the_outputs_its_forecast_needs_and_the_first_latents(depth):
    setup = built("Stable Diffusion 1.5")
    kept = []

    def callback(pipe, step, timestep, tensors):
        history = handle._runner.history
        tracks = [tensor for line in history.streams.values() for tensor in (*line.past, line.x0)]
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
    assert cached.count <= full.count + 2  # the times of the first two calls of a run


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


@pytest.mark.parametrize("name", ["Flux", "Wan 2.1"])
def test_a_run_holds_at_most_its_history_and_one_output_a_branch(name):
    setup = built(name)
    held = []

    def callback(pipe, step, timestep, tensors):
        run, lines = handle._gate.loop, handle._runner.history.streams.values()
        if run is not None:
            outputs = [kept[1] for kept in run.outputs.kept.values()]
            latents = [tensor for line in lines for tensor in (*line.past, *line.past_x, line.x0)]
            held.append((len(outputs), len({tensor.data_ptr() for tensor in latents})))
        return tensors

    depth = 3
    with adaptcache.attach(setup.pipe, planned(setup, range(5), Extrapolate(order=depth - 1))) as handle:
        generated(setup, callback_on_step_end=callback)
        assert handle._gate.loop is None and not handle._runner.history.streams
    assert max(held) == (setup.branches, depth + 1)  # (m + 2) latents: the current ones are the pipeline's


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_history_is_kept_in_the_dtype_of_the_outputs_and_summed_in_single_precision(dtype):
    past = [torch.randn(1, 64, generator=torch.Generator().manual_seed(k)).to(dtype) for k in range(3)]
    known = Known(past, past[0], past[1])
    weights = Weights((2.7, -2.4, 0.7))
    terms = list(zip(weights.past, past, strict=True))
    exact = sum(w * tensor.double() for w, tensor in terms)
    rounded = sum((w * tensor for w, tensor in terms), torch.zeros(1, 64).to(dtype))
    ours = (weighted_sum(weights, known).double() - exact).abs()
    assert (ours <= exact.abs() * torch.finfo(dtype).eps).all()  # one rounding, at the end
    assert ours.mean() < 0.7 * (rounded.double() - exact).abs().mean()
    setup = built("Flux")
    schedule = planned(setup, PLAN)
    setup.pipe.to(dtype)
    rows = [{name: value.to(dtype) for name, value in row.items()} for row in setup.prompts]
    kinds = set()

    def callback(pipe, step, timestep, tensors):
        kinds.update(tensor.dtype for line in handle._runner.history.streams.values() for tensor in line.past)
        return tensors

    with pytest.warns(UserWarning, match="other weights"), adaptcache.attach(setup.pipe, schedule) as handle:
        generated(type(setup)(setup.pipe, setup.call, rows), callback_on_step_end=callback)
    assert kinds == {dtype}


def whole_modules(pipe):
    pipe.enable_model_cpu_offload(device="cpu")


def layer_by_layer(pipe):
    # Not `enable_sequential_cpu_offload`: it also moves buffers, which accelerate cannot do on a CPU.
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            accelerate.cpu_offload(part, torch.device("cpu"))


@pytest.mark.parametrize("offload", [whole_modules, layer_by_layer])
@pytest.mark.parametrize("name", ["Flux", "Stable Diffusion 1.5"])
@pytest.mark.parametrize("late", [False, True], ids=["before attach", "after attach"])
def test_offloading_by_accelerate_changes_no_bit_and_skips_fetch_nothing(name, offload, late):
    setup = built(name)
    schedule = planned(setup, PLAN)
    with adaptcache.attach(setup.pipe, schedule):
        cached = generated(setup)
    if not late:
        offload(setup.pipe)
    with adaptcache.attach(setup.pipe, schedule) as handle:
        if late:
            offload(setup.pipe)
        with counted(setup.pipe) as calls:
            assert same(generated(setup), cached)
    assert len(calls) == len(PLAN) == handle.report().made
