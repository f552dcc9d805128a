"""How a pipeline is called: everything but the prompt and the noise."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch

__all__ = ["Call", "Prompt", "own_noise", "sampling_rate"]

Prompt = str | Mapping[str, Any]  # a mapping holds the arguments of one sample: class_labels, image, ...


@dataclass(frozen=True)
class Call:
    """Calls a pipeline the same way again and again, with prompts and seeds.

    Arguments:
        steps: `num_inference_steps`.
        arguments: Further arguments of the pipeline's `__call__`: height, width, guidance_scale, ...
        seed: The noise of prompt number k is drawn with seed + k, on the CPU: the same on every device.
    """

    steps: int
    arguments: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0

    def __call__(
        self, pipe: Any, prompts: Sequence[Prompt], first: int = 0, output_type: str = "latent"
    ) -> Any:
        """Runs the pipeline on one batch.

        Arguments:
            pipe: A diffusers pipeline.
            prompts: The prompts of the batch.
            first: The number of the first of them, which sets the noise.
            output_type: "latent" (not decoded), "np" or "pil".

        Returns:
            What the pipeline returns first: images, frames, audio or latents.
        """
        return self.run(pipe, prompts, first, output_type)[0]

    def run(
        self, pipe: Any, prompts: Sequence[Prompt], first: int = 0, output_type: str = "latent"
    ) -> Sequence[Any]:
        """Runs the pipeline on one batch and returns all it returns: frames and audio, say."""
        known = inspect.signature(pipe.__call__).parameters
        if unknown := sorted(set(self.arguments) - set(known)):
            raise TypeError(
                f"{type(pipe).__name__} takes no {', '.join(unknown)}; it takes {', '.join(known)}"
            )
        noise = [torch.Generator("cpu").manual_seed(self.seed + first + k) for k in range(len(prompts))]
        extra = {
            "num_inference_steps": self.steps,
            "generator": noise if len(noise) > 1 else noise[0],
            "output_type": output_type,
            "return_dict": False,
        }
        extra = {name: value for name, value in extra.items() if name in known}
        with own_noise():
            torch.manual_seed(self.seed + first)  # some schedulers take no generator
            result: Sequence[Any] = pipe(**extra | self._spread(len(prompts)) | _merged(prompts))
        return result

    def _spread(self, samples: int) -> dict[str, Any]:
        """Returns the arguments for so many samples: not all pipelines repeat a negative prompt."""
        one = {name: value for name, value in self.arguments.items()
               if name.startswith("negative_prompt") and isinstance(value, str)}  # fmt: skip
        many = {name: [value] * samples for name, value in one.items()} if samples > 1 else {}
        return dict(self.arguments) | many


def own_noise() -> AbstractContextManager[None]:
    """Leaves the random number generators that belong to nobody as they were."""
    return torch.random.fork_rng(devices=[torch.cuda.current_device()] if torch.cuda.is_available() else [])


def _merged(prompts: Sequence[Prompt]) -> dict[str, Any]:
    """Returns the arguments of a batch: texts as `prompt`, mappings merged key by key.

    Tensors and lists hold one sample each and are joined; anything else becomes an entry of a list.
    """
    rows = [{"prompt": p} if isinstance(p, str) else dict(p) for p in prompts]
    if len(rows) == 1:
        return rows[0]
    return {name: _joined([row[name] for row in rows]) for name in rows[0]}


def _joined(values: list[Any]) -> Any:
    """Returns the values that samples have for one argument as that of a batch."""
    if all(isinstance(value, torch.Tensor) for value in values):
        return torch.cat(values)
    if all(isinstance(value, list) for value in values):
        return [entry for value in values for entry in value]
    return values


def sampling_rate(pipe: Any) -> int | None:
    """Returns how many samples a second a pipeline makes; None where it makes no sound."""
    configs = [getattr(part, "config", None) for part in pipe.components.values()]
    rates = [getattr(config, "sampling_rate", None) for config in configs]
    return next((int(rate) for rate in rates if rate), None)
