"""The error that a user sees is the one that happened."""

import pytest
import torch

from adaptcache.evaluation.generate import generate
from adaptcache.runs import PromptSet
from tests.calls import Call
from tests.toy import PROMPTS, Pipe


class Small(Pipe):
    """Runs out of memory after its steps are set and before its denoiser is called."""

    def __call__(self, prompt, num_inference_steps=12, generator=None, output_type="latent", return_dict=False):
        self.scheduler.set_timesteps(num_inference_steps)
        raise torch.OutOfMemoryError("out of memory (made up)")


class FailsInside(Pipe):
    """Fails in its denoiser, at the first step or at a later one."""

    def __init__(self, at):
        super().__init__()
        calls = []

        def fail(module, args):
            calls.append(1)
            if len(calls) > at:
                raise ZeroDivisionError("made up")

        self.transformer.register_forward_pre_hook(fail)


def test_running_out_of_memory_before_the_first_denoiser_call_is_said():
    with pytest.raises(torch.OutOfMemoryError, match="made up"):
        generate(Call(12).of(Small()), PromptSet.of(PROMPTS[:1]))


@pytest.mark.parametrize("at", [0, 5])
def test_an_error_of_the_denoiser_is_said(at):
    with pytest.raises(ZeroDivisionError, match="made up"):
        generate(Call(12).of(FailsInside(at)), PromptSet.of(PROMPTS[:1]))


def test_an_error_between_loops_is_said_and_the_report_counts_the_loop_that_was_made():
    import adaptcache
    from tests.pipelines.table import built, generated, planned

    setup = built("Flux")
    with adaptcache.attach(setup.pipe, planned(setup, [0, 1, 3])) as handle:

        class Decoder(Exception):
            """The image cannot be decoded."""

        def fails(*args, **kwargs):
            raise Decoder

        setup.pipe.vae.decode = fails
        with pytest.raises(Decoder):
            generated(setup, output_type="np")
        assert handle.report().computed == [0, 1, 3]
