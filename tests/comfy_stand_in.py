"""A stand-in for what of ComfyUI the engine touches: wrappers of a MODEL, guiders, samplers, noise levels.

The tests of `test_comfyui.py` run on it, and on a real ComfyUI too where COMFYUI_PATH names its folder.
"""

from __future__ import annotations

import copy
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import itertools
import os
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

NO_COMFY = "COMFYUI_PATH names no ComfyUI: COMFYUI_PATH=folder make comfyui-test"


class Executor:
    def __init__(self, original: Callable[..., Any], owner: Any, wrappers: list[Any]) -> None:
        self.original, self.class_obj, self.wrappers = original, owner, wrappers

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return Executor(self.original, self.class_obj, self.wrappers[1:]).execute(*args, **kwargs)

    def execute(self, *args: Any, **kwargs: Any) -> Any:
        return self.wrappers[0](self, *args, **kwargs) if self.wrappers else self.original(*args, **kwargs)


class Patcher:
    """A MODEL."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.load_device = model, torch.device("cpu")
        self.model_options: dict[str, Any] = {"transformer_options": {}}
        self.wrappers: dict[str, dict[str, list[Any]]] = {}
        self.patches: dict[str, list[Any]] = {}
        self.patches_uuid = 0
        self.backup: dict[str, Any] = {}
        self.object_patches: dict[str, Any] = {}

    def clone(self) -> Patcher:
        other = Patcher(self.model)
        other.model_options, other.backup = copy.deepcopy(self.model_options), self.backup
        other.patches = {key: value[:] for key, value in self.patches.items()}
        other.wrappers = {kind: {k: w[:] for k, w in keys.items()} for kind, keys in self.wrappers.items()}
        other.object_patches, other.patches_uuid = dict(self.object_patches), self.patches_uuid
        return other

    def add_wrapper_with_key(self, kind: str, key: str, wrapper: Any) -> None:
        self.wrappers.setdefault(kind, {}).setdefault(key, []).append(wrapper)

    def get_wrappers(self, kind: str, key: str) -> list[Any]:
        return self.wrappers.get(kind, {}).get(key, [])

    def get_model_object(self, name: str) -> Any:
        return self.object_patches.get(name, getattr(self.model, name))

    def add_object_patch(self, name: str, value: Any) -> None:
        self.object_patches[name] = value

    def add_patches(self, patches: dict[str, Any], strength: float = 1.0) -> None:
        for key, value in patches.items():
            self.patches.setdefault(key, []).append((strength, value, 1.0, None, None))
        self.patches_uuid += 1

    def model_dtype(self) -> torch.dtype:
        return torch.float32


class CONST:
    def calculate_denoised(self, sigma: Tensor, output: Tensor, x: Tensor) -> Tensor:
        return x - output * sigma

    def noise_scaling(self, sigma: Tensor, noise: Tensor, latent: Tensor, max_denoise: bool) -> Tensor:
        return sigma * noise + (1 - sigma) * latent


class EPS(CONST):
    def noise_scaling(self, sigma: Tensor, noise: Tensor, latent: Tensor, max_denoise: bool) -> Tensor:
        return noise * ((1 + sigma**2).sqrt() if max_denoise else sigma) + latent


class Flow(CONST, nn.Module):
    def __init__(self, shift: float = 0.5) -> None:
        super().__init__()
        self.shift = shift
        times = torch.arange(1, 1001) / 1000
        self.register_buffer("sigmas", times * (1 + shift) / (1 + shift * times))


class Discrete(EPS, nn.Module):
    num_timesteps = 1000

    def __init__(self) -> None:
        super().__init__()
        alphas = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000).double() ** 2, 0)
        self.register_buffer("sigmas", ((1 - alphas) / alphas).sqrt().float())
        self.register_buffer("log_sigmas", self.sigmas.log())


class Denoiser(nn.Module):
    """Outputs that bend with the time, the latents and the prompt."""

    def __init__(self, channels: int = 4) -> None:
        super().__init__()
        made = torch.Generator().manual_seed(0)
        self.mix = nn.Parameter(torch.randn(channels, channels, generator=made) / 2)
        self.out = nn.Parameter(torch.randn(channels, channels, generator=made) / 2)

    def forward(self, x: Tensor, sigma: Tensor, prompt: Tensor) -> Tensor:
        time = sigma.reshape(-1, *[1] * (x.ndim - 1))
        hidden = torch.tanh(torch.einsum("bc...,cd->bd...", x / (1 + time**2).sqrt(), self.mix) + 2 * time + prompt)
        return torch.einsum("bc...,cd->bd...", hidden, self.out) + 0.3 * x / (1 + time**2).sqrt()


class Model(nn.Module):
    def __init__(self, sampling: nn.Module) -> None:
        super().__init__()
        self.diffusion_model, self.model_sampling = Denoiser(), sampling
        self.model_config = types.SimpleNamespace(unet_config={"channels": 4})
        self.current_patcher: Any = None

    def apply_model(self, x: Tensor, sigma: Tensor, prompt: Tensor) -> Tensor:
        assert self.current_patcher is not None, "a run without its patcher"
        level = sigma.reshape(-1, *[1] * (x.ndim - 1))
        return self.model_sampling.calculate_denoised(level, self.diffusion_model(x, sigma, prompt), x)


class CFGGuider:
    def __init__(self, patcher: Patcher) -> None:
        self.model_patcher, self.model_options, self.cfg = patcher, patcher.model_options, 1.0

    def set_conds(self, positive: Any, negative: Any) -> None:
        self.original_conds = {"positive": positive, "negative": negative}

    def set_cfg(self, cfg: float) -> None:
        self.cfg = cfg

    def wrappers(self, kind: str) -> list[Any]:
        return [one for found in self.model_options["transformer_options"]["wrappers"].get(kind, {}).values()
                for one in found]  # fmt: skip

    def __call__(self, x: Tensor, sigma: Tensor, model_options: Any = None, seed: int | None = None) -> Tensor:
        options = model_options or {}
        return Executor(self.predict_noise, self, self.wrappers("predict_noise")).execute(x, sigma, options, seed)

    def predict_noise(self, x: Tensor, sigma: Tensor, options: dict[str, Any], seed: int | None) -> Tensor:
        single = self.cfg == 1 and not options.get("disable_cfg1_optimization")
        texts = [torch.cat([row["cross_attn"] for row in self.conds[kind]]) for kind in ("positive", "negative")]
        cond, uncond = (
            None if single and k else self.inner_model.apply_model(x, sigma, text) for k, text in enumerate(texts)
        )
        made = cond if uncond is None else uncond + (cond - uncond) * self.cfg
        for read in options.get("sampler_post_cfg_function", []):
            made = read({"denoised": made, "uncond_denoised": uncond, "cond_denoised": cond, "input": x})
        return made

    def sample(
        self, noise: Tensor, latent_image: Tensor, sampler: Any, sigmas: Tensor, denoise_mask: Any = None,
        callback: Any = None, disable_pbar: bool = False, seed: int | None = None,
    ) -> Tensor:  # fmt: skip
        self.inner_model, before = self.model_patcher.model, self.model_options
        made = {k: [{"cross_attn": c[0], **c[1]} for c in cond] for k, cond in self.original_conds.items()}
        self.conds = made
        self.model_options = copy.copy(before)
        known = {**before["transformer_options"], "wrappers": self.model_patcher.wrappers}
        self.model_options["transformer_options"] = known
        sampling = self.inner_model.model_sampling
        self.inner_model.model_sampling = self.model_patcher.get_model_object("model_sampling")
        self.inner_model.current_patcher = self.model_patcher
        extra = {"model_options": dict(self.model_options), "seed": seed}
        try:
            executor = Executor(sampler.sample, sampler, self.wrappers("sampler_sample"))
            return executor.execute(
                self, sigmas.clone(), extra, callback, noise, latent_image, denoise_mask, disable_pbar
            )
        finally:
            self.inner_model.current_patcher = None
            self.inner_model.model_sampling = sampling
            self.model_options = before


class Sampler:
    """A SAMPLER."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self.sampler_function, self.extra_options, self.inpaint_options = function, {}, {}

    def sample(
        self, guider: Any, sigmas: Tensor, extra: dict[str, Any], callback: Any, noise: Tensor,
        latent: Tensor | None = None, mask: Any = None, disable_pbar: bool = False,
    ) -> Tensor:  # fmt: skip
        sampling = guider.inner_model.model_sampling
        whole = float(sigmas[0]) >= float(sampling.sigmas[-1]) * (1 - 1e-5)
        x = sampling.noise_scaling(sigmas[0], noise, latent, whole)
        steps = len(sigmas) - 1

        def tell(i: int, denoised: Tensor, x: Tensor) -> None:
            if callback is not None:
                callback(i, denoised, x, steps)

        def model(x: Tensor, level: Tensor, **more: Any) -> Tensor:
            return guider(x, level * x.new_ones(len(x)), **{**extra, **more})

        return self.sampler_function(model, x, sigmas, extra, tell)


def euler(model: Any, x: Tensor, sigmas: Tensor, extra: Any, tell: Any) -> Tensor:
    for i, (now, after) in enumerate(itertools.pairwise(sigmas)):
        denoised = model(x, now)
        tell(i, denoised, x)
        x = denoised + (x - denoised) * (after / now)
    return x


def euler_ancestral(model: Any, x: Tensor, sigmas: Tensor, extra: Any, tell: Any) -> Tensor:
    noise = torch.Generator().manual_seed(extra["seed"] or 0)
    for i, (now, after) in enumerate(itertools.pairwise(sigmas)):
        denoised = model(x, now)
        tell(i, denoised, x)
        down = after * 0.8
        x = (
            denoised
            + (x - denoised) * (down / now)
            + (after**2 - down**2).sqrt() * torch.randn(x.shape, generator=noise)
        )
    return x


def dpmpp_2m(model: Any, x: Tensor, sigmas: Tensor, extra: Any, tell: Any) -> Tensor:
    old = None
    for i, (now, after) in enumerate(itertools.pairwise(sigmas)):
        denoised = model(x, now)
        tell(i, denoised, x)
        aim = denoised if old is None else 1.5 * denoised - 0.5 * old
        x, old = aim + (x - aim) * (after / now), denoised
    return x


def uni_pc(model: Any, x: Tensor, sigmas: Tensor, extra: Any, tell: Any) -> Tensor:
    sigmas[-1] = 0.001  # in place, as the real one does
    return euler(model, x, sigmas, extra, tell)


def heun(model: Any, x: Tensor, sigmas: Tensor, extra: Any, tell: Any) -> Tensor:
    for i, (now, after) in enumerate(itertools.pairwise(sigmas)):
        denoised = model(x, now)
        tell(i, denoised, x)
        slope = (x - denoised) / now
        if after > 0:
            there = x + slope * (after - now)
            slope = (slope + (there - model(there, after)) / after) / 2
        x = x + slope * (after - now)
    return x


def euler_cfg_pp(model: Any, x: Tensor, sigmas: Tensor, extra: Any, tell: Any) -> Tensor:
    seen: dict[str, Tensor] = {}

    def read(given: dict[str, Any]) -> Tensor:
        seen["uncond"] = given["uncond_denoised"]
        return given["denoised"]

    options = {**extra["model_options"], "disable_cfg1_optimization": True}
    options["sampler_post_cfg_function"] = [*options.get("sampler_post_cfg_function", []), read]
    for i, (now, after) in enumerate(itertools.pairwise(sigmas)):
        denoised = model(x, now, model_options=options)
        tell(i, denoised, x)
        x = denoised + (x - seen["uncond"]) * (after / now)
    return x


def sa_solver(model: Any, x: Tensor, sigmas: Tensor, extra: Any, tell: Any) -> Tensor:
    for i, (now, after) in enumerate(itertools.pairwise(sigmas)):
        denoised = model(x, now)
        tell(i, denoised, x)
        away = torch.stack([x - denoised])
        x = denoised + torch.tensordot(away, (after / now)[None], dims=([0], [0]))  # of one precision, as the real one
    return x


SAMPLERS = {one.__name__: one for one in (euler, euler_ancestral, dpmpp_2m, uni_pc, heun, euler_cfg_pp, sa_solver)}


class KSampler:
    def __init__(
        self, model: Patcher, steps: int, device: Any, sampler: str, scheduler: str, denoise: float = 1.0
    ) -> None:
        table = model.get_model_object("model_sampling").sigmas
        all_steps = int(steps / denoise)
        levels = [float(table[-(1 + int(i * len(table) / all_steps))]) for i in range(all_steps)]
        self.sigmas = torch.tensor([*levels, 0.0])[-(steps + 1) :]


def stand_in_modules(models: str = "") -> dict[str, types.ModuleType]:
    """Returns the modules that the engine and the nodes import, by name; `models` is the folder of models."""
    samplers, sample = types.ModuleType("comfy.samplers"), types.ModuleType("comfy.sample")
    version, package = types.ModuleType("comfyui_version"), types.ModuleType("comfy")
    samplers.CFGGuider, samplers.KSampler = CFGGuider, KSampler
    samplers.SAMPLER_NAMES = list(SAMPLERS)
    samplers.sampler_object = lambda name: Sampler(SAMPLERS[name])
    sample.fix_empty_latent_channels = lambda model, latent: latent
    version.__version__ = "stand-in"
    management, bars = types.ModuleType("comfy.model_management"), types.ModuleType("comfy.utils")
    management.throw_exception_if_processing_interrupted = lambda: None
    bars.ProgressBar = lambda total: types.SimpleNamespace(update_absolute=lambda done, of: None)
    KSampler.SAMPLERS, KSampler.SCHEDULERS = list(SAMPLERS), ["simple"]
    package.samplers, package.sample, package.__path__ = samplers, sample, []
    package.model_management, package.utils = management, bars
    named = {f"comfy.{one}": getattr(package, one) for one in ("samplers", "sample", "model_management", "utils")}
    return {"comfy": package, "comfyui_version": version, "folder_paths": Folders(models), **named}


class Folders(types.ModuleType):
    """`folder_paths`."""

    def __init__(self, models: str) -> None:
        super().__init__("folder_paths")
        self.models_dir = models
        self.folder_names_and_paths: dict[str, Any] = {}

    def add_model_folder_path(self, name: str, path: str) -> None:
        self.folder_names_and_paths[name] = ([path], set())

    def get_folder_paths(self, name: str) -> list[str]:
        return self.folder_names_and_paths[name][0]

    def get_filename_list(self, name: str) -> list[str]:
        folder = Path(self.get_folder_paths(name)[0])
        return sorted(path.name for path in folder.glob("*")) if folder.is_dir() else []

    def get_full_path(self, name: str, file: str) -> str | None:
        path = Path(self.get_folder_paths(name)[0]) / file
        return str(path) if path.is_file() else None

    def get_full_path_or_raise(self, name: str, file: str) -> str:
        if (path := self.get_full_path(name, file)) is None:
            raise FileNotFoundError(f"{file} is not in {name}")
        return path


PACK = Path(__file__).parents[1] / "comfyui"


def load_pack() -> Any:
    """Returns the node pack, as ComfyUI loads it."""
    for name in [name for name in sys.modules if name.startswith("adaptcache_nodes")]:
        del sys.modules[name]
    spec = importlib.util.spec_from_file_location(
        "adaptcache_nodes", PACK / "__init__.py", submodule_search_locations=[str(PACK)]
    )
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["adaptcache_nodes"] = module
    spec.loader.exec_module(module)
    return module


def walk_through(pack: Any, given: dict[str, Any], sample: Callable[[Any], Tensor]) -> tuple[str, Any]:
    """Goes from prompts to a faster workflow and a comparison, as a stranger does; returns the texts and the images.

    Arguments:
        pack: The node pack.
        given: What Calibrate is given but for lists: 12 steps at a speed of 2, one held-out prompt, a name.
        sample: Runs a MODEL with the same settings.
    """
    nodes = {name: kind() for name, kind in pack.NODE_CLASS_MAPPINGS.items()}
    positive = given.pop("positive")
    assert nodes["AdaptcachePrompts"].split("one\n\n two ") == (["one", "two"],)
    lists = {name: [value] for name, value in given.items()}
    made = nodes["AdaptcacheCalibrate"].calibrate(positive=positive, **lists)["result"]
    assert f"saved as {given['name']}.json" in made[1] and "1 held-out" in made[1]
    choices = nodes["AdaptcacheLoadSchedule"].INPUT_TYPES()["required"]["name"][0]
    assert f"{given['name']}.json" in choices
    schedule, about = nodes["AdaptcacheLoadSchedule"].load(f"{given['name']}.json")
    assert "6 of 12 steps computed" in about
    (fast,) = nodes["AdaptcacheApplySchedule"].apply(given["model"], schedule, -1, True)
    report = nodes["AdaptcacheReport"].report(fast, {"samples": sample(fast)})["result"][0]
    assert "6 denoiser calls made, 6 skipped (calibrated)" in report
    rest = {name: value for name, value in given.items() if name not in ("speed", "held_out", "name")}
    images, says = nodes["AdaptcacheCompare"].compare(schedule=schedule, positive=positive[-1], **rest)["result"]
    assert "6 of 12 steps computed" in says and "6 plain steps" in says and "(calibrated)" in says
    return f"{report}\n{says}", images


WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN")


def check_workflow(flow: dict[str, Any], ours: dict[str, Any]) -> int:
    """Checks that our nodes of a workflow have the inputs and the widgets that there are; returns their number."""
    links = {link[0]: link for link in flow["links"]}
    found = [node for node in flow["nodes"] if node["type"].startswith("Adaptcache")]
    for node in found:
        known = ours[node["type"]].INPUT_TYPES()
        inputs = {**known["required"], **known.get("optional", {})}
        widgets = [name for name, (kind, *_) in inputs.items() if not isinstance(kind, str) or kind in WIDGETS]
        assert {slot["name"] for slot in node["inputs"]} == inputs.keys() - set(widgets)
        seeds = sum(name == "seed" for name in widgets)  # which has a control after it
        assert len(node["widgets_values"]) == len(widgets) + seeds, node["type"]
        for slot in node["inputs"]:
            assert links[slot["link"]][3] == node["id"] and links[slot["link"]][5] == slot["type"]
    return len(found)


class Anything(types.ModuleType):
    """What torchvision and torchaudio are in ComfyUI, which imports them and does not need them here."""

    __path__ = ()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Anything(name)

    def __call__(self, *_: Any, **__: Any) -> Any:
        return self


class Missing(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds stand-ins for packages that are not installed."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        known = name.split(".")[0] in ("torchvision", "torchaudio")
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if known else None

    def create_module(self, spec: Any) -> types.ModuleType:
        return Anything(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def comfyui_path() -> Path | None:
    """Returns the folder of a real ComfyUI, or None."""
    path = Path(os.environ.get("COMFYUI_PATH", ""))
    return path if os.environ.get("COMFYUI_PATH") and (path / "comfy" / "samplers.py").is_file() else None


def boot() -> None:
    """Makes a real ComfyUI importable, on the CPU. Its requirements have to be importable too."""
    import diffusers.pipelines.flux.pipeline_flux  # noqa: F401 - looks for torchvision itself

    path = comfyui_path()
    assert path is not None, NO_COMFY
    if str(path) not in sys.path:
        sys.path.insert(0, str(path))
        sys.meta_path.append(Missing())
    importlib.import_module("comfy.cli_args").args.cpu = not torch.cuda.is_available()
    importlib.import_module("comfy.sd")


def stand_in_model(sampling: nn.Module | None = None) -> Patcher:
    return Patcher(Model(sampling or Flow()))


def prompt(seed: int, shape: tuple[int, ...] = (1, 4, 1, 1)) -> list[Any]:
    """Returns a conditioning of the stand-in."""
    return [[torch.randn(shape, generator=torch.Generator().manual_seed(1000 + seed)) * 0.3, {}]]
