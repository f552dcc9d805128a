"""A pipeline that runs in milliseconds, with a real scheduler, and profiles of it."""

import types
from dataclasses import replace

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import nn

from adaptcache.profile import Profile
from adaptcache.profiling.measure import measure
from adaptcache.runs import PromptSet
from tests.calls import Call


class Denoiser(nn.Module):
    """A smooth function of latents, time and condition."""

    config = types.MappingProxyType({"width": 6})

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.outer, self.time = nn.Linear(6, 16), nn.Linear(16, 6), nn.Linear(1, 16)

    def forward(self, hidden_states, timestep, condition):
        t = timestep.to(self.time.weight.dtype).reshape(-1, 1, 1)
        return (self.outer(torch.tanh(self.inner(hidden_states) + self.time(t) + condition)) + hidden_states,)


class Pipe:
    """A text-to-latents pipeline with as many sequential branches as it is told."""

    config = types.SimpleNamespace(_name_or_path="toy")

    def __init__(self, branches: int = 1, dtype: torch.dtype = torch.float32) -> None:
        self.branches, self.dtype = branches, dtype
        self.transformer = Denoiser().to(dtype)
        self.scheduler = FlowMatchEulerDiscreteScheduler()

    @property
    def components(self):
        return {"transformer": self.transformer, "scheduler": self.scheduler}

    def set_progress_bar_config(self, **_):
        pass

    @torch.no_grad()
    def __call__(self, prompt, num_inference_steps=12, generator=None, output_type="latent", return_dict=False):
        prompts = [prompt] if isinstance(prompt, str) else prompt
        generators = generator if isinstance(generator, list) else [generator]
        x = torch.cat([torch.randn(1, 9, 6, generator=g) for g in generators]).to(self.dtype)
        condition = torch.tensor([float(len(p)) for p in prompts], dtype=self.dtype).reshape(-1, 1, 1) / 10
        self.scheduler.set_timesteps(num_inference_steps)
        self.scheduler.set_begin_index(0)
        for t in self.scheduler.timesteps:
            time = (t / 1000).expand(len(x))
            outputs = [self.transformer(x, time, k * condition)[0] for k in range(self.branches)]
            u = outputs[0] if len(outputs) == 1 else outputs[0] + 2 * (outputs[-1] - outputs[0])
            x = self.scheduler.step(u, t, x, return_dict=False)[0]
        return (x,)


PROMPTS = ["a", "lighthouse", "in a", "storm at night"]


def run(pipe, steps=12, prompts=PROMPTS[:1]):
    """Returns the final latents."""
    return Call(steps)(pipe, prompts)


def profile(steps=12) -> Profile:
    """Returns what was measured on all prompts."""
    return replace(measured(steps).profile, sensitivities=np.zeros((0, steps)))


def measured(steps=12, pipe=None, **more):
    """Returns what full runs on all prompts gave."""
    return measure(Call(steps).of(pipe or Pipe(), **more), PromptSet.of(PROMPTS))
