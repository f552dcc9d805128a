"""The site `regions`: most tokens of the image, in the whole denoiser.

At a partial step the denoiser is called with the tokens that are chosen and their positions, and the others keep the
output they had. Attention of the chosen ones is to all: keys and values of the others stay those of the step at which
they were computed last.

References:
    | RAS (Liu et al., 2025), https://arxiv.org/abs/2502.10389
"""

import inspect
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import AttachError
from ..schedule.rule import Rule
from .attention import AttentionTap, check_text_first
from .hook import Gate, SiteHook
from .outputs import join_tensors, split_tensors

IMAGE_IDS = "img_ids"


@dataclass
class BranchTokens:
    """What was computed last of each token of a branch."""

    output: Tensor  # with shape (B, L, C)
    drops: Tensor  # at how many partial steps of the run it was left out, with shape (L,)
    pairs: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # keys and values, by call of attention


class Regions(SiteHook):
    """Computes a part of the image's tokens in one denoiser: those of the highest score, the same in a whole batch.

    The score is the standard deviation of a token's last output over its channels, times e to the freshness for each
    partial step of the run that it was left out.
    """

    def __init__(self, denoiser: nn.Module, gate: Gate, rule: Rule) -> None:
        kind: Any = type(denoiser)
        self.names = list(inspect.signature(kind.forward).parameters)[1:]
        if IMAGE_IDS not in self.names:
            raise AttachError(
                f"{kind.__name__} is not given the positions of tokens (img_ids), so the site 'regions' cannot leave "
                "tokens out; use the site 'tokens'"
            )
        check_text_first(denoiser, "the site 'regions' cannot keep keys and values; use the site 'tokens'")
        super().__init__(denoiser, gate, rule, {})

    def install(self, undo: ExitStack) -> None:
        self.take_denoiser(self.call_denoiser, undo)

    def on_run_end(self) -> None:
        super().on_run_end()
        self.branches: dict[int, BranchTokens] = {}

    def call_denoiser(self, original: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """The denoiser was called at a step that is computed, at least in part."""
        here = self.gate.here()
        assert here is not None
        branch, given = here[1], {**dict(zip(self.names, args, strict=False)), **kwargs}
        x, ids = given["hidden_states"], given[IMAGE_IDS]
        if any(value is not None for name, value in given.items() if name.startswith("controlnet_")):
            raise AttachError("a ControlNet adds to all tokens: use the site 'tokens' with it")
        computes = self.decision.decide(*here, lambda: self.read_signal((x,), {}))
        known = self.branches.get(branch)
        if computes or known is None or known.output.shape[:2] != x.shape[:2]:
            return self.call_whole(original, given, branch)
        self.gate.skipped()
        tokens = self.rule.tokens
        assert tokens is not None
        deviation = known.output.float().std(-1).mean(0)
        chosen = (deviation * (tokens.freshness * known.drops).exp()).topk(tokens.count(x.shape[1])).indices
        part = {**given, "hidden_states": x[:, chosen], IMAGE_IDS: ids.index_select(-2, chosen)}
        number = iter(range(len(known.pairs)))

        def see(query: Tensor, key: Tensor, value: Tensor, attend: Callable[..., Tensor]) -> Tensor:
            at = next(number)
            keys, values = known.pairs[at]
            if key.shape[2] == keys.shape[2]:  # to something else than the image's tokens, or to all of them
                return attend(query, key, value)
            text = key.shape[2] - len(chosen)
            places = torch.cat([torch.arange(text, device=chosen.device), text + chosen])
            known.pairs[at] = keys, values = keys.index_copy(2, places, key), values.index_copy(2, places, value)
            return attend(query, keys, values, rows=places)

        with AttentionTap(see):
            holes, (fresh, *rest) = split_tensors(original(**part))
        known.output = known.output.index_copy(1, chosen, fresh)
        known.drops += 1
        known.drops[chosen] -= 1
        return join_tensors(holes, [known.output, *rest])

    def call_whole(self, original: Callable[..., Any], given: Any, branch: int) -> Any:
        """Calls the denoiser with all tokens, and keeps what it gave."""
        pairs: list[tuple[Tensor, Tensor]] = []

        def see(query: Tensor, key: Tensor, value: Tensor, attend: Callable[..., Tensor]) -> Tensor:
            pairs.append((key.clone(), value.clone()))
            return attend(query, key, value)

        with AttentionTap(see):
            output = original(**given)
        found = split_tensors(output)[1][0]
        if not pairs:
            raise AttachError(
                f"{type(self.denoiser).__name__} does not attend by torch's scaled_dot_product_attention, whose keys "
                "and values the site 'regions' keeps; set the attention backend 'native'"
            )
        known = self.branches.get(branch)
        same = known is not None and known.output.shape[:2] == found.shape[:2]
        drops = known.drops if known and same else torch.zeros(found.shape[1], device=found.device)
        self.branches[branch] = BranchTokens(found.clone(), drops, pairs)
        self.decision.observe(found, branch)
        return output
