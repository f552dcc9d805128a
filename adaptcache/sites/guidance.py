"""The site `guidance`: the denoiser call that only serves guidance, made of the output of the other one.

Where a step calls its denoiser twice, the first call is the one with the prompt, in the pipelines of
diffusers. At a skipped step the later calls are not made: what they returned differed from what the first one
returned, and the forecast of that difference is added to the first one's output.

Where both are one call on a batch of two halves, the half without the prompt comes first. Then the call is
made on the other half alone: whatever of its arguments has as many samples as the batch is cut.

References:
    | FasterCache (Lv et al., 2024), https://arxiv.org/abs/2410.19355
    | Guidance in an interval (Kynkäänniemi et al., 2024), https://arxiv.org/abs/2404.07724
"""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import AttachError
from ..schedule.rule import Rule
from ..step import Step, entering
from .hook import Gate, SiteHook
from .outputs import first_shape, join_tensors, split_tensors, take_half

CLOSE = 0.1  # of its energy: what of a guided output is no weighted sum of two
PROMPT_FIRST = {"AceStepTransformer1DModel"}  # and whose guidance is no weighted sum
REVERSED = (
    "{name} puts the half with the prompt first, where others put that without it: the site 'guidance' would leave "
    "out the prompt; use another site"
)
NONE = (
    "{name} calls its denoiser once a step, and not on a batch of two halves with and without the prompt: "
    "there is no call for guidance that the site 'guidance' could skip; turn guidance on, or use another "
    "site (a pipeline that has no `do_classifier_free_guidance` does not say what its batch is)"
)


class Guidance(SiteHook):
    """Skips the calls of one denoiser that only serve guidance; `alone`, a run without such calls is an error."""

    def __init__(self, denoiser: nn.Module, gate: Gate, rule: Rule, alone: bool = True) -> None:
        self.alone = alone
        super().__init__(denoiser, gate, rule, {})

    def install(self, undo: ExitStack) -> None:
        self.take_denoiser(self.call_denoiser, undo)

    def compiled(self) -> str:
        return ""  # whole calls are skipped

    def on_run_start(self, rule: Rule, times: tuple[float, ...], gear: int) -> None:
        here = self.gate.here()
        if self.entered and here is not None and here[1] == 0:  # the first step had one call
            if self.halved:
                self.gate.half = False
                self.decides(Step(0, ()), 1, (), {})
                self.learn_halves()
            elif self.alone or self.guided:
                raise self.error(NONE)
        super().on_run_start(rule, times, gear)

    def on_run_end(self) -> None:
        super().on_run_end()
        self.first: list[Tensor] = []  # what the first call of this step returned
        self.pair: tuple[Tensor, Tensor] | None = None  # outputs without and with the prompt, before the first guided
        self.looked = False  # whether that was compared with them
        self.entered: torch.Size | None = None
        self.halved = self.sure = self.guided = False
        self.gate.half = None

    def error(self, says: str) -> AttachError:
        """Returns the error of a run that has no calls for guidance, or halves that are the other way round."""
        return AttachError(says.format(name=type(self.gate.pipe).__name__))

    def call_denoiser(self, original: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """The denoiser was called at a step that is computed."""
        here = self.gate.here()
        assert here is not None
        step, branch = here
        if branch:
            return self.call_later(step, branch, original, args, kwargs)
        x = entering(args, kwargs)
        if self.entered is None and x is not None:  # its first call in this run
            self.entered = first_shape(args, kwargs)
            self.guided = bool(getattr(self.gate.pipe, "do_classifier_free_guidance", False))
            self.halved = is_guided(self.gate.pipe) and is_doubled(x)
            if self.halved and type(self.denoiser).__name__ in PROMPT_FIRST:
                raise self.error(REVERSED)
            if self.halved and not any(value is x for value in (*args, *kwargs.values())):  # it was stacked
                raise AttachError(
                    f"{type(self.denoiser).__name__} takes a list of samples, of which the site 'guidance' cannot "
                    "leave out those without the prompt; use another site"
                )
        whole = self.gate.half is not None and first_shape(args, kwargs) == self.entered
        if whole and not self.sure and x is not None:
            # Two prompts that began with the same noise are told apart once a step was taken.
            self.sure, self.halved = True, is_doubled(x)
            if not self.halved:
                whole, self.gate.half, self.decision.made = False, None, []
                if self.alone:
                    raise self.error(NONE)
        if whole and not self.decides(step, 1, args, kwargs):
            return self.call_half(original, args, kwargs)
        output = original(*args, **kwargs)
        self.first = split_tensors(output)[1]
        if whole:
            self.learn_halves()
        return output

    def decides(self, step: Step, branch: int, args: Any, kwargs: Any) -> bool:
        """Whether the calls for guidance are made at this step."""
        says = self.decision.decide(step, branch, lambda: self.read_signal(args, kwargs))
        # Of two calls the first one was made, and may have returned another shape than before.
        shape = self.shapes.get(branch) if self.gate.half is not None else first_shape(self.first, {})
        if not says and not self.knows(branch, shape):
            says = self.decision.made[-1] = True
        return says

    def call_later(self, step: Step, branch: int, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """A call after the first was made: it serves guidance."""
        if not self.decides(step, branch, args, kwargs):
            self.gate.skipped()
            return join_tensors(self.holes[branch], self.forecasts(branch, self.first))
        output = original(*args, **kwargs)
        self.holes[branch], found = split_tensors(output)
        self.learn(branch, found, self.first)
        return output

    def learn_halves(self) -> None:
        """Notes by how much the halves of an output differ."""
        halves = [tensor.chunk(2) for tensor in self.first]
        self.learn(1, [without for without, _ in halves], [given for _, given in halves])

    def learn(self, branch: int, without: list[Tensor], given: list[Tensor]) -> None:
        """Notes by how much outputs differ from those with the prompt."""
        if len(without) != len(given):
            raise AttachError(
                f"{type(self.denoiser).__name__} is called for guidance alone, and another denoiser with the prompt: "
                "the site 'guidance' needs one for both; use another site"
            )
        shapes = [[tuple(tensor.shape) for tensor in tensors] for tensors in (without, given)]
        if shapes[0] != shapes[1]:
            raise AttachError(
                f"{type(self.denoiser).__name__} returns {shapes[0]} without the prompt and {shapes[1]} with it: the "
                "site 'guidance' cannot keep their difference; use another site"
            )
        added = [a - b for a, b in zip(without, given, strict=True)]
        self.keep(branch, dict(enumerate(added)), added[0].shape)
        if branch == 1:
            self.decision.observe(added[0], self.decision.lead)
            if not self.looked:
                self.pair = without[0].clone(), given[0].clone()

    def on_guided(self, u: Tensor) -> None:
        # Guidance weighs the output with the prompt by its scale, and the other one by 1 less, of the other sign.
        pair, self.pair = self.pair, None
        if pair is None:
            return
        self.looked = True
        if pair[0].shape != u.shape:  # a variance beside, say: nothing is told
            return
        rows = torch.stack([*pair, u]).flatten(1).float()
        gram = (rows @ rows.T).cpu().double().numpy()
        weights = np.linalg.lstsq(gram[:2, :2], gram[:2, 2])[0]
        missed = gram[2, 2] - weights @ gram[:2, 2]
        if weights[0] * weights[1] < 0 and abs(weights[0]) > abs(weights[1]) and missed < CLOSE * gram[2, 2]:
            raise self.error(REVERSED)

    def forecasts(self, branch: int, given: list[Tensor]) -> list[Tensor]:
        """Returns what is used instead of outputs without the prompt."""
        return [value + self.forecast(branch, number) for number, value in enumerate(given)]

    def call_half(self, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Makes the call on the half with the prompt, and returns the output of both halves."""
        assert self.entered is not None
        args, kwargs = take_half((args, kwargs), self.entered[0])
        self.gate.half = True
        try:
            output = original(*args, **kwargs)
        finally:
            self.gate.half = False
        holes, given = split_tensors(output)
        made = self.forecasts(1, given)
        return join_tensors(holes, [torch.cat(pair) for pair in zip(made, given, strict=True)])


def is_guided(pipe: Any) -> bool:
    """Whether a pipeline says that it may guide with a second output; distilled ones have a scale as well."""
    says = getattr(pipe, "do_classifier_free_guidance", None)
    return bool((getattr(pipe, "guidance_scale", None) or 0) > 1 if says is None else says)


def is_doubled(x: Tensor) -> bool:
    """Whether a batch has two equal halves. Syncs the device."""
    a, b = x[: len(x) // 2], x[len(x) // 2 :]
    return a.shape == b.shape and torch.equal(a, b)
