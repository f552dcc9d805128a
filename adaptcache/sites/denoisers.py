"""What is known of denoiser classes and their layers, as data; the site `step` needs none of it."""

import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from ..errors import AttachError

IMAGE, TEXT = "hidden_states", "encoder_hidden_states"


@dataclass(frozen=True)
class DenoiserSpec:
    """Where the blocks of a denoiser are, and what goes through them."""

    blocks: tuple[str, ...]  # attributes that hold its blocks, in the order they run
    # Arguments of a block that it returns, in the order it returns them. The image's is called `hidden_states`. Blocks
    # that return one tensor return the image's, with the text before it if the sequence is longer than what entered.
    streams: tuple[str, ...] = (IMAGE,)
    # arguments of the first block's `norm1` besides the image's, and what the block calls them, if its first result is
    # the modulated input (TeaCache's signal)
    modulated: Mapping[str, str] = field(default_factory=dict)
    named: Mapping[str, str] = field(default_factory=dict)


ONE = DenoiserSpec(("transformer_blocks",))
BOTH = ("transformer_blocks", "single_transformer_blocks")
TIME = {"emb": "temb"}

DENOISERS: dict[str, DenoiserSpec] = {
    "AllegroTransformer3DModel": ONE,
    "AuraFlowTransformer2DModel": DenoiserSpec(
        ("joint_transformer_blocks", "single_transformer_blocks"), (TEXT, IMAGE)
    ),
    "ChromaTransformer2DModel": DenoiserSpec(BOTH, (TEXT, IMAGE)),
    "CogVideoXTransformer3DModel": DenoiserSpec(("transformer_blocks",), (IMAGE, TEXT)),
    "CogView4Transformer2DModel": DenoiserSpec(("transformer_blocks",), (IMAGE, TEXT)),
    "DiTTransformer2DModel": ONE,
    "Flux2Transformer2DModel": DenoiserSpec(BOTH, (TEXT, IMAGE)),
    "FluxTransformer2DModel": DenoiserSpec(BOTH, (TEXT, IMAGE), TIME),
    "HunyuanImageTransformer2DModel": DenoiserSpec(BOTH, (IMAGE, TEXT)),
    "HunyuanVideoTransformer3DModel": DenoiserSpec(BOTH, (IMAGE, TEXT), TIME),
    "LTXVideoTransformer3DModel": ONE,
    "MochiTransformer3DModel": DenoiserSpec(("transformer_blocks",), (IMAGE, TEXT)),
    "PixArtTransformer2DModel": ONE,
    "QwenImageTransformer2DModel": DenoiserSpec(("transformer_blocks",), (TEXT, IMAGE)),
    "SD3Transformer2DModel": DenoiserSpec(("transformer_blocks",), (TEXT, IMAGE), TIME),
    "SanaTransformer2DModel": ONE,
    "StableAudioDiTModel": ONE,
    "WanTransformer3DModel": DenoiserSpec(("blocks",)),
}


# Denoisers whose joint attention has the text before the image.
TEXT_FIRST = {
    "ChromaTransformer2DModel", "CogVideoXTransformer3DModel", "Flux2Transformer2DModel", "FluxTransformer2DModel",
    "QwenImageTransformer2DModel",
}  # fmt: skip

# Attributes that hold blocks, those first that tell most: of two lists that run one after the other, both.
STACKS = (
    BOTH, ("double_stream_blocks", "single_stream_blocks"), ("transformer_blocks",), ("blocks",), ("layers",),
    ("double_blocks",), ("visual_transformer_blocks",), ("single_transformer_blocks",), ("transformer_layers",),
)  # fmt: skip


def find_spec(denoiser: nn.Module) -> DenoiserSpec:
    """Looks a denoiser up by its class name and those of its bases, so that nothing is imported; else, by structure.

    Raises:
        AttachError: Neither tells where its blocks are, and what goes through them.
    """
    for kind in type(denoiser).__mro__:
        if kind.__name__ in DENOISERS:
            return DENOISERS[kind.__name__]
    reason = "it has no list of blocks"
    lists = {name: part for name, part in denoiser.named_children() if isinstance(part, nn.ModuleList) and len(part)}
    for stack in (stack for stack in STACKS if lists.keys() >= set(stack)):
        found = [streams_of(type(unwrapped(block))) for name in stack for block in lists[name]]
        if all(one is not None and one == found[0] for one in found):
            streams, named = found[0]  # type: ignore[misc]
            return DenoiserSpec(stack, streams, named=named)
        kinds = sorted({type(block).__name__ for name in stack for block in lists[name]})
        reason = f"what {' and '.join(kinds)} take and return cannot be told, or differs"
    raise AttachError(
        f"{type(denoiser).__name__} has no site 'blocks': {reason}; use the site 'step', which needs no knowledge"
    )


def streams_of(kind: Any) -> tuple[tuple[str, ...], dict[str, str]] | None:
    """Returns the streams that blocks of a class return, in order, and what they call those that have other names.

    From the names in the last `return` of the forward; where these do not tell, from diffusers' registry of blocks,
    which is wrong for some (Bria).
    """
    given, known = list(inspect.signature(kind.forward).parameters)[1:], registered(kind)
    image = IMAGE if IMAGE in given else next(iter(given), "")
    if known is not None and known.hidden_states_argument_name in given:
        image = known.hidden_states_argument_name
    named, returned = {} if image == IMAGE else {IMAGE: image}, returned_names(kind)
    if image and len(returned) == 1 and (known is None or known.return_encoder_hidden_states_index is None):
        return (IMAGE,), named
    if image in returned and set(returned) <= set(given):
        return tuple(IMAGE if name == image else name for name in returned), named
    if known is None:
        return None
    places = {known.return_hidden_states_index: IMAGE, known.return_encoder_hidden_states_index: TEXT}
    text = known.encoder_hidden_states_argument_name
    if text in given and text != TEXT:
        named[TEXT] = text
    return tuple(places[at] for at in sorted(at for at in places if at is not None)), named


def unwrapped(block: nn.Module) -> nn.Module:
    """Returns what a block only hands everything on to (HiDream), or the block."""
    children = list(block.children())
    return children[0] if len(children) == 1 and returned_names(type(block)) == [""] else block


def returned_names(kind: Any) -> list[str]:
    """Returns the names in the last `return` of the forward of a class, "" for what has none."""
    with suppress(OSError, TypeError, SyntaxError):
        tree = ast.parse(textwrap.dedent(inspect.getsource(kind.forward)))
        returns = [node.value for node in ast.walk(tree) if isinstance(node, ast.Return) and node.value is not None]
        last = max(returns, key=lambda value: value.lineno, default=None)
        parts = last.elts if isinstance(last, ast.Tuple) else [last] if last is not None else []
        return [part.id if isinstance(part, ast.Name) else "" for part in parts]
    return []


def registered(kind: Any) -> Any:
    """Returns what diffusers' own caches know of a class of blocks; None where they know nothing."""
    registry = getattr(sys.modules.get("diffusers.hooks._helpers"), "TransformerBlockRegistry", None)
    with suppress(ValueError, AttributeError, TypeError):
        return registry.get(kind) if registry is not None else None
    return None


# Layers are found by what diffusers' own PyramidAttentionBroadcastConfig goes by: the names of the lists
# their blocks are in, the classes of attention, and `is_cross_attention`, where a class has it.
IN_BLOCKS = re.compile(r"(^|[._])(blocks|layers)\.")
TEMPORAL = re.compile(r"temporal_transformer_blocks|motion_modules")
ATTENTION = {"Attention", "MochiAttention", "AttentionModuleMixin"}
CROSS_NAME = re.compile(r"(^|\.)(\w*attn2|cross_attn|\w+_to_\w+_attn)$")
MLP_NAME = re.compile(r"(^|\.)((img_|txt_|audio_|proj_)?(ff|ffn|mlp)|ff_(context|i|t)|feed_forward)$")


def layer_type(name: str, module: nn.Module) -> str | None:
    """Returns which layer site a module of a denoiser belongs to, by its name and class; None if to none."""
    if not IN_BLOCKS.search(name):
        return None
    if any(kind.__name__ in ATTENTION for kind in type(module).__mro__):
        cross = getattr(module, "is_cross_attention", None)
        if cross or (cross is None and CROSS_NAME.search(name)):
            return "cross-attention"
        return "temporal-attention" if TEMPORAL.search(name) else "attention"
    return "mlp" if MLP_NAME.search(name) else None


def find_layers(denoiser: nn.Module, site: str) -> dict[str, nn.Module]:
    """Returns the layers of a type by name, in the order they are defined; none within another layer."""
    if site == "encoder":
        return find_encoder(denoiser)
    found: dict[str, nn.Module] = {}
    within = "\0"
    for name, module in denoiser.named_modules():
        if name.startswith(within):
            continue
        if kind := layer_type(name, module):
            within = f"{name}."
            if kind == site:
                found[name] = module
    return found


def find_encoder(denoiser: nn.Module) -> dict[str, nn.Module]:
    """Returns the blocks of a U-Net on its way down, and the middle one."""
    down, middle = getattr(denoiser, "down_blocks", None), getattr(denoiser, "mid_block", None)
    if not isinstance(down, nn.ModuleList) or not isinstance(getattr(denoiser, "up_blocks", None), nn.ModuleList):
        raise AttachError(
            f"the site 'encoder' is the way down of a U-Net, and {type(denoiser).__name__} is none; use 'blocks'"
        )
    found = {f"down_blocks.{number}": block for number, block in enumerate(down)}
    return found if middle is None else {**found, "mid_block": middle}
