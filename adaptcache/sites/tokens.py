"""The sites `tokens` and `regions`: most tokens of all feed-forward layers, or of the image in the whole denoiser.

At a partial step of `tokens` each layer is called with the tokens that are chosen, and the others keep what it gave
them last. So the work is saved, not masked. What a token has to do is chosen anew in each layer, by what enters it.

At one of `regions` the denoiser is called with the tokens that are chosen and their positions, and the others keep the
output they had. Attention of the chosen ones is to all: keys and values of the others stay those of the step at which
they were computed last. They go through torch's own attention, whatever the denoiser's processor.

References:
    | ToCa (Zou et al., 2024), https://arxiv.org/abs/2410.05317
    | DuCa (Zou et al., 2024), https://arxiv.org/abs/2412.18911
    | ClusCa (Zheng et al., 2025), https://arxiv.org/abs/2509.10312
    | RAS (Liu et al., 2025), https://arxiv.org/abs/2502.10389
"""

import inspect
import re
from collections.abc import Callable, Hashable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.functional import normalize
from torch.overrides import TorchFunctionMode

from ..errors import AttachError
from ..schedule.rule import Rule
from ..step import TINY
from .denoisers import TEXT_FIRST
from .hook import Gate, SiteHook
from .layers import Key, Layers
from .outputs import first_shape, join_tensors, split_tensors

NAMES = "query", "key", "value", "attn_mask", "dropout_p", "is_causal"


class AttentionTap(TorchFunctionMode):
    """Gives the calls of `scaled_dot_product_attention` to a function, while it is entered.

    Arguments:
        see: Is given query, key and value, each with shape (B, heads, L, D), and what makes the call with these three;
            where queries were left out it is told which are there (`rows`), for a mask of all.
    """

    def __init__(self, see: Callable[[Tensor, Tensor, Tensor, Callable[..., Tensor]], Tensor]) -> None:
        super().__init__()
        self.see = see

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not functional.scaled_dot_product_attention:
            return func(*args, **kwargs)
        given = {**dict(zip(NAMES, args, strict=False)), **kwargs}
        query, key, value = (given.pop(name) for name in NAMES[:3])

        def attend(query: Tensor, key: Tensor, value: Tensor, rows: Tensor | None = None) -> Tensor:
            mask = given.get("attn_mask")
            if rows is not None and mask is not None and mask.shape[-2] > 1:
                mask = mask.index_select(-2, rows)
            output: Tensor = func(query, key, value, **{**given, "attn_mask": mask})
            return output

        return self.see(query, key, value, attend)


def influence(query: Tensor, key: Tensor) -> Tensor:
    """Returns how much attention each token gets, the mean over heads and queries; with shape (B, L)."""
    scores = query.float() @ key.float().transpose(-1, -2) / query.shape[-1] ** 0.5
    attention: Tensor = scores.softmax(-1).mean((1, 2))
    return attention


def check_text_first(denoiser: nn.Module, instead: str) -> None:
    """Raises where it is not known that the text comes before the image in a denoiser's joint attention."""
    if not any(kind.__name__ in TEXT_FIRST for kind in type(denoiser).__mro__):
        raise AttachError(
            f"where the image is in the joint attention of {type(denoiser).__name__} is not known, so {instead}"
        )


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
