"""What goes through the attention of a denoiser, whatever its processor: the calls of torch's own attention."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from ..errors import AttachError
from .denoisers import TEXT_FIRST

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
