"""Calls of a module that are taken: by whom, in which order, and what is left when they are given back."""

from contextlib import ExitStack
from threading import get_ident

import pytest
import torch
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import nn

from adaptcache.errors import AttachError
from adaptcache.sites.interceptor import ModuleInterceptor, find_compiled, is_compiled
from adaptcache.sites.outputs import fill_zeros, first_shape, join_tensors, split_tensors, take_half

SLOT = "_compiled_call_impl"


class Owner:
    def __init__(self, started=1, running=True):
        self.started, self.thread = started, get_ident() if running else None


def adding(value, log=None):
    def call(module, original, args, kwargs):
        if log is not None:
            log.append(value)
        return original(*args, **kwargs) + value

    return call


@pytest.fixture
def module():
    return nn.Identity()


def test_of_several_owners_the_one_whose_run_started_last_gets_the_call(module):
    early, late = Owner(1), Owner(2)
    with ExitStack() as undo:
        ModuleInterceptor.install(module, late, adding(20), undo)
        ModuleInterceptor.install(module, early, adding(1), undo)
        found = ModuleInterceptor.of(module)
        assert found.serves(early) and found.serves(late) and not found.serves(Owner())
        assert module(0) == 20
        late.thread = None
        assert module(0) == 1
        early.thread = None
        assert module(0) == 0
    assert ModuleInterceptor.of(module) is None and SLOT not in vars(module)


def test_what_one_owner_installs_twice_lies_one_behind_the_other(module):
    owner, log = Owner(), []
    with ExitStack() as undo:
        ModuleInterceptor.install(module, owner, adding(1, log), undo)
        ModuleInterceptor.install(module, owner, adding(10, log), undo, shared=False)
        assert module(0) == 11 and log == [10, 1]


def test_a_module_that_is_not_shared_is_refused_to_a_second_owner_and_stays_as_it_was(module):
    with ExitStack() as undo:
        ModuleInterceptor.install(module, Owner(), adding(1), undo)
        with ExitStack() as other, pytest.raises(AttachError, match="Identity of this denoiser is attached"):
            ModuleInterceptor.install(module, Owner(), adding(5), other, shared=False)
        assert module(0) == 1


def test_owners_leave_in_any_order(module):
    first, second = ExitStack(), ExitStack()
    ModuleInterceptor.install(module, Owner(1), adding(1), first)
    ModuleInterceptor.install(module, Owner(2), adding(2), second)
    first.close()
    assert module(0) == 2
    second.close()
    assert module(0) == 0 and SLOT not in vars(module)


def test_hooks_of_a_call_that_is_not_made_do_not_run(module):
    seen = []
    module.register_forward_pre_hook(lambda *_: seen.append("hook"))
    with ExitStack() as undo:
        ModuleInterceptor.install(module, Owner(), lambda module, original, args, kwargs: "skipped", undo)
        assert module(0) == "skipped" and not seen
    assert module(0) == 0 and seen == ["hook"]


def test_compiled_code_is_behind_and_is_put_back():
    module = nn.Linear(2, 2)
    assert not is_compiled(module)
    module.compile(backend="eager")
    code = vars(module)[SLOT]
    with ExitStack() as undo:
        ModuleInterceptor.install(module, Owner(), adding(1.0), undo)
        assert is_compiled(module)
        x = torch.ones(1, 2)
        assert torch.allclose(module(x), module.forward(x) + 1)
    assert vars(module)[SLOT] is code
    assert find_compiled(nn.Sequential(module), ["0.inner"]) == "0"


def test_what_compiles_a_module_in_the_meantime_is_left_alone():
    module = nn.Linear(2, 2)
    with ExitStack() as undo:
        ModuleInterceptor.install(module, Owner(), adding(1.0), undo)
        module.compile(backend="eager")
        code = vars(module)[SLOT]
    assert vars(module)[SLOT] is code and is_compiled(module)


OUTPUTS = [
    torch.ones(4, 3),
    (torch.ones(4, 3), None, torch.zeros(2)),
    [torch.ones(4), {"a": torch.ones(4, 1), "b": "text"}],
    Transformer2DModelOutput(sample=torch.ones(4, 3)),
]


def same(a, b):
    """Whether two outputs have the same types and values."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return type(a) is type(b) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.mark.parametrize("output", OUTPUTS, ids=lambda output: type(output).__name__)
def test_an_output_is_taken_apart_and_put_together_again(output):
    holes, tensors = split_tensors(output)
    assert same(join_tensors(holes, tensors), output)
    zeros = fill_zeros(holes)
    assert type(zeros) is type(output) and all(not tensor.any() for tensor in split_tensors(zeros)[1])
    assert [tensor.shape for tensor in split_tensors(zeros)[1]] == [tensor.shape for tensor in tensors]
    if isinstance(output, Transformer2DModelOutput):
        assert torch.equal(join_tensors(holes, tensors).sample, output.sample)


def test_half_of_a_batch_is_taken_of_what_has_as_many_samples():
    given = (torch.arange(4), {"x": torch.arange(8).reshape(4, 2), "scale": torch.tensor(2.0)}, "text")
    half = take_half(given, 4)
    assert half[0].tolist() == [2, 3] and half[1]["x"].tolist() == [[4, 5], [6, 7]]
    assert half[1]["scale"] == 2 and half[2] == "text" and take_half(torch.ones(3), 4).shape == (3,)
    assert first_shape(("a",), {"x": torch.ones(4, 2)}) == (4, 2) and first_shape((), {}) is None
