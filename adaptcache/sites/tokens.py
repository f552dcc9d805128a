"""The site `tokens`: most tokens of all feed-forward layers.

At a partial step each layer is called with the tokens that are chosen, and the others keep what it gave them last.
So the work is saved, not masked. What a token has to do is chosen anew in each layer, by what enters it.

References:
    | ToCa (Zou et al., 2024), https://arxiv.org/abs/2410.05317
    | DuCa (Zou et al., 2024), https://arxiv.org/abs/2412.18911
    | ClusCa (Zheng et al., 2025), https://arxiv.org/abs/2509.10312
"""

import re
from collections.abc import Callable, Hashable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from ..errors import AttachError
from ..schedule.rule import Rule
from ..step import TINY
from .attention import AttentionTap, check_text_first, influence
from .hook import Gate
from .layers import Key, Layers
from .outputs import first_shape

ROUNDS = 5  # of k-means
TEXT_NAME = re.compile(r"context|txt|text|encoder")  # of a layer for the text alone
SAME = 0.02  # relative: a token alone gives what it gives among others, to the rounding of half precision


@dataclass
class LayerTokens:
    """What a layer was given and gave, token by token."""

    inputs: Tensor  # at the step at which each token was computed last, with shape (B, L, D)
    outputs: Tensor  # with shape (B, L, E)
    ages: Tensor  # partial steps since then, with shape (B, L)
    attention: Tensor | None = None  # how much of it each token got, with shape (B, L) and a norm of 1
    groups: Tensor | None = None  # the cluster of each token, with shape (B, L)


class Tokens(Layers):
    """Computes a part of the tokens in the feed-forward layers of one denoiser; the layers decide together."""

    def __init__(self, denoiser: nn.Module, gate: Gate, rule: Rule) -> None:
        super().__init__(denoiser, gate, rule)
        if not self.parts:
            raise AttachError(f"{type(denoiser).__name__} has no feed-forward layers for the site 'tokens'")
        self.attends = rule.tokens is not None and rule.tokens.score == "attention"

    def install(self, undo: ExitStack) -> None:
        super().install(undo)
        if self.attends:
            around = self.gate.within.get(id(self.denoiser))
            self.take_denoiser(partial(self.call_denoiser, around), undo)

    def call_denoiser(self, around: Any, original: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """The denoiser was called: watches its attention."""
        self.influence: Tensor | None = None
        with AttentionTap(self.attended):
            return around(original, *args, **kwargs) if around else original(*args, **kwargs)

    def attended(self, query: Tensor, key: Tensor, value: Tensor, attend: Callable[..., Tensor]) -> Tensor:
        """Notes how much attention tokens get, where they attend to one another."""
        if query.shape[2] == key.shape[2]:
            self.influence = influence(query, key)
        return attend(query, key, value)

    def attention_to(self, name: str, x: Tensor) -> Tensor:
        """Returns how much attention the tokens of a layer got in the last call before it, with a norm of 1."""
        found = self.influence
        if found is None:  # a layer that comes before any attention
            found = x.new_ones(x.shape[:2]).float()
        if found.shape[1] != x.shape[1]:
            check_text_first(self.denoiser, "tokens cannot be scored by 'attention'; use the score 'change'")
            found = found[:, : x.shape[1]] if TEXT_NAME.search(name) else found[:, -x.shape[1] :]
        return normalize(found, dim=1)

    def on_run_end(self) -> None:
        super().on_run_end()
        self.known: dict[Hashable, LayerTokens] = {}
        self.full: dict[Hashable, int] = {}  # the last step with all tokens

    def fits(self, key: Key, args: Any, kwargs: Any) -> bool:
        return key in self.known and self.known[key].inputs.shape == first_shape(args, kwargs)

    def skip(self, key: Key, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        self.gate.skipped()
        x = (*args, *kwargs.values())[0]
        more = kwargs if args else dict(list(kwargs.items())[1:])
        known, tokens = self.known[key], self.rule.tokens
        assert tokens is not None
        if (self.step.index - self.full[key]) % tokens.every:
            known.ages = known.ages + 1
            return known.outputs
        if self.rule.forecast.depth > 1:  # the others follow their own forecast
            known.outputs = self.forecast(key, 0)
        return self.refresh(known, x, lambda chosen: original(chosen, *args[1:], **more))

    def learn(self, key: Key, original: Callable[..., Any], args: Any, kwargs: Any, output: Any) -> list[Tensor]:
        """Keeps what a layer gave for all tokens; `AttachError` where that depends on the other tokens."""
        x, name = (*args, *kwargs.values())[0], key[1]
        if key not in self.known and not self.is_tokenwise(x, output, original):
            raise AttachError(
                f"{name} of {type(self.denoiser).__name__} does not work token by token, so the site 'tokens' "
                "cannot leave tokens out; use the site 'mlp'"
            )
        chosen = self.rule.tokens
        assert chosen is not None
        groups = cluster_tokens(output, chosen.count(x.shape[1])) if chosen.score == "cluster" else None
        attention = self.attention_to(name, x) if self.attends else None
        self.full[key] = self.step.index
        self.known[key] = LayerTokens(x.clone(), output.clone(), x.new_zeros(x.shape[:2]), attention, groups)
        return self.keep_output(key, output, x.shape) if self.rule.forecast.depth > 1 else [output]

    def is_tokenwise(self, x: Tensor, output: Any, original: Callable[..., Any]) -> bool:
        """Whether the first token gives alone what it gives among all; tried once a layer and run."""
        if not isinstance(output, Tensor) or x.ndim != 3 or output.shape[:2] != x.shape[:2]:
            return False
        try:
            alone = original(x[:, :1]).float()
        except (AttributeError, RuntimeError, TypeError, ValueError):  # it needs the other tokens, or their places
            return False
        among = output[:, :1].float()
        return bool((alone - among).abs().max() <= SAME * among.abs().max() + TINY)

    def refresh(self, known: LayerTokens, x: Tensor, compute: Callable[[Tensor], Tensor]) -> Tensor:
        """Computes the chosen tokens, and returns all."""
        tokens = self.rule.tokens
        assert tokens is not None
        change = (x.float() - known.inputs.float()).norm(dim=-1)
        match tokens.score:
            case "change" | "cluster":
                score = change / known.inputs.float().norm(dim=-1).clamp_min(TINY)
            case "attention":
                assert known.attention is not None
                score = known.attention
            case "position":
                rows = [row for row in tokens.scores if len(row) == x.shape[1]]
                if not rows:
                    lengths = ", ".join(str(len(row)) for row in tokens.scores)
                    raise AttachError(
                        f"scores are of {lengths} positions, and a layer has {x.shape[1]}: fit them anew"
                    )
                score = torch.tensor(rows[0], device=x.device).expand(x.shape[:2])
            case "norm":
                score = normalize(known.outputs.float().norm(dim=-1), dim=1)
        score = score + tokens.freshness * known.ages.float()
        if known.groups is None:
            chosen = score.topk(tokens.count(x.shape[1]), dim=1).indices
        else:  # of each cluster the one with the highest score
            same = known.groups[:, None] == torch.arange(tokens.count(x.shape[1]), device=x.device)[None, :, None]
            chosen = score[:, None].expand(same.shape).masked_fill(~same, -torch.inf).argmax(-1)
        wide = chosen[..., None].expand(-1, -1, x.shape[-1])
        fresh = compute(part := x.gather(1, wide))
        spread = chosen[..., None].expand(-1, -1, fresh.shape[-1])
        outputs = known.outputs
        if known.groups is not None and tokens.spread:  # the others follow the one of their cluster
            moved = (fresh - outputs.gather(1, spread)).gather(1, known.groups[..., None].expand_as(outputs))
            outputs = outputs + tokens.spread * moved
        known.outputs = outputs.scatter(1, spread, fresh)
        known.inputs = known.inputs.scatter(1, wide, part)
        known.ages = (known.ages + 1).scatter(1, chosen, 0)
        return known.outputs


def cluster_tokens(values: Tensor, count: int) -> Tensor:
    """Returns the cluster of each token (B, L, E) by k-means on what it is, with shape (B, L).

    The first centres are tokens at even distances.
    """
    values = values.float()
    first = torch.linspace(0, values.shape[1] - 1, count, device=values.device).round().long()
    centres = values[:, first]
    for _ in range(ROUNDS):
        groups = torch.cdist(values, centres).argmin(-1)
        members = torch.nn.functional.one_hot(groups, count).to(values)  # (B, L, K)
        size = members.sum(1)[..., None]
        centres = torch.where(size > 0, members.transpose(1, 2) @ values / size.clamp_min(1), centres)
    return torch.cdist(values, centres).argmin(-1)
