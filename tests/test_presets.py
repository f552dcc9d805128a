"""Presets: what ships is callable as written, and what cannot be loaded says why."""

import inspect
import types

import diffusers
import huggingface_hub
import pytest
import safetensors.torch
import torch
from diffusers.pipelines import pipeline_utils
from huggingface_hub import errors

from adaptcache.presets import CheckpointError, Preset, calibration_folder, names, resolve
from tests.pipelines.table import built

HUB = Preset(name="no-such", checkpoint="nobody/no-such-model")
GATED = HUB.model_copy(update={"gated": True})


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.fixture
def saved(tmp_path):
    """A pipeline of one tiny U-Net and a scheduler, saved to a folder."""
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        sample_size=4,
        in_channels=1,
        out_channels=1,
        block_out_channels=(4,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        norm_num_groups=1,
        layers_per_block=1,
        add_attention=False,
    )
    diffusers.DDPMPipeline(unet, diffusers.DDIMScheduler()).save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


def hub_error(kind):
    # The hub's own error class; of the response it reads only the headers.
    return kind("Client Error", response=types.SimpleNamespace(headers={}, request=None))


def accelerated(monkeypatch, kind):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: kind is not None)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: kind and torch.device(kind))


def fail(error):
    def raises(*args, **kwargs):
        raise error

    return raises


# What ships


@pytest.mark.parametrize("name", names())
def test_every_argument_of_a_preset_exists_in_its_pipeline(name):
    preset = Preset.load(name)
    kind = getattr(diffusers, preset.pipeline)
    if issubclass(kind, diffusers.ModularPipeline):
        parameters = {one.name for one in getattr(diffusers, kind.default_blocks_name)().inputs}
    else:
        parameters = set(inspect.signature(kind.__call__).parameters)
    given = {**preset.call, "num_inference_steps": preset.steps, "prompt": "a", "generator": None}
    assert [key for key in given if key not in parameters] == []


@pytest.mark.parametrize("name", names())
def test_every_preset_has_its_file_name_and_says_what_it_is(name):
    preset = Preset.load(name)
    assert preset.name == name
    assert preset.about and "\n" not in preset.about
    assert preset.checkpoint.count("/") == 1


def test_the_promised_presets_are_there():
    flux, schnell, emoji = map(Preset.load, ("flux", "flux-schnell", "emoji-flux-32"))
    assert (flux.checkpoint, flux.steps, flux.call["guidance_scale"]) == (
        "black-forest-labs/FLUX.1-dev",
        28,
        3.5,
    )
    assert (schnell.steps, schnell.call["guidance_scale"]) == (4, 0.0)
    assert (emoji.steps, emoji.call["height"], emoji.folder) == (
        28,
        32,
        calibration_folder() / "demo" / "emoji-flux-32",
    )
    assert flux.folder is None and flux.gated and not emoji.gated


def test_the_twenty_most_used_pipelines_have_a_preset():
    wanted = """flux flux-schnell flux-kontext flux2 sd15 sdxl sd3.5 pixart-sigma sana qwen-image z-image
        chroma lumina2 wan2.1 wan2.2 hunyuan-video ltx cogvideox mochi stable-audio"""
    assert set(wanted.split()) <= set(names())
    assert len({Preset.load(name).checkpoint for name in names()}) == len(names())


# Reading a preset


def test_a_preset_file_of_ones_own_is_read_by_its_path(tmp_path):
    path = tmp_path / "mine.v2.toml"
    path.write_text('checkpoint = "user/repo"\nsteps = 9\n[call]\nheight = 64\n')
    for preset in (Preset.load(path), resolve(str(path))):
        assert preset == Preset(name="mine.v2", checkpoint="user/repo", steps=9, call={"height": 64})


def test_a_byte_order_mark_is_no_part_of_a_preset(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('checkpoint = "user/repo"\n', encoding="utf-8-sig")
    assert Preset.load(path) == Preset(name="mine", checkpoint="user/repo")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('checkpoint = "a/b"\nstep = 9', "not a preset: step: Extra inputs"),
        ("steps = 9", "not a preset: checkpoint: Field required"),
        ('checkpoint = "a/b"\nsteps = "9"', "not a preset: steps: .*integer"),
        ('checkpoint = "a/b"\nsteps = 0', "not a preset: steps: .*greater"),
        ('checkpoint = "a/b"\ndtype = "int8"', "not a preset: dtype: .*'bfloat16'"),
        ('checkpoint = "a/b"\n[call]\nprompt = "x"', "not a preset: call: .*sets prompt itself"),
        ("checkpoint = ", "not a TOML file"),
        (b"about = '\xff'", "not a TOML file"),
    ],
)
def test_a_bad_preset_file_is_one_clear_line(tmp_path, text, message):
    path = tmp_path / "mine.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=message) as caught:
        Preset.load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_preset_does_not_change():
    with pytest.raises(ValueError, match="frozen"):
        HUB.steps = 3  # type: ignore[misc]


def test_arguments_of_the_call_are_set_by_words():
    preset = HUB.called_with(["height=768", "guidance_scale=5.0", "eta=0", "sigmas=[1.0, 0.5]", "mode=fast"])
    assert preset.call == {
        "height": 768, "guidance_scale": 5.0, "eta": 0, "sigmas": [1.0, 0.5], "mode": "fast"
    }  # fmt: skip
    assert HUB.call == {} and preset.called_with(["height=64"]).call["height"] == 64
    for bad in ("height", "=3", "a b=3", "prompt=x"):
        with pytest.raises(ValueError, match=r"NAME=VALUE|sets prompt itself"):
            HUB.called_with([bad])


@pytest.mark.parametrize("pipeline", ["DiffusionPipeline", "ModularPipeline", "QwenImageModularPipeline"])
def test_a_modular_pipeline_is_loaded_like_a_classic_one(tmp_path, pipeline):
    parts = built("Qwen-Image").pipe
    blocks = diffusers.QwenImageAutoBlocks()
    pipe = blocks.init_pipeline()
    pipe.update_components(transformer=parts.transformer, scheduler=parts.scheduler)
    pipe.save_pretrained(str(tmp_path / "tiny"), overwrite_modular_index=True)
    mine = resolve(str(tmp_path / "tiny")).model_copy(update={"pipeline": pipeline, "dtype": "bfloat16"})
    found = mine.load_pipeline("cpu")
    assert type(found) is diffusers.QwenImageModularPipeline and found.transformer.dtype == torch.bfloat16
    (tmp_path / "tiny" / "transformer" / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"transformer of .*tiny cannot be loaded"):
        mine.load_pipeline("cpu")


# Finding a preset


def test_a_name_wins_over_a_folder_of_that_name(tmp_path, monkeypatch):
    (tmp_path / "flux").mkdir()
    monkeypatch.chdir(tmp_path)
    assert resolve("flux") == Preset.load("flux")


def test_a_checkpoint_that_a_preset_is_about_gives_that_preset():
    assert resolve("black-forest-labs/FLUX.1-dev") == Preset.load("flux")
    emoji = Preset.load("emoji-flux-32")
    assert resolve("demo/emoji-flux-32") == emoji
    assert resolve(str(emoji.folder)) == emoji


@pytest.mark.parametrize(
    ("accelerator", "dtype"),
    [("cuda", "bfloat16"), ("xpu", "bfloat16"), ("mps", "float32"), (None, "float32")],
)
def test_an_unknown_hub_id_gets_defaults(monkeypatch, accelerator, dtype):
    accelerated(monkeypatch, accelerator)
    assert resolve("user/some-model.v2") == Preset(
        name="some-model.v2",
        checkpoint="user/some-model.v2",
        pipeline="DiffusionPipeline",
        dtype=dtype,
        steps=28,
        prompts="general",
    )


def test_a_folder_gets_defaults_and_its_own_name(saved, monkeypatch):
    monkeypatch.chdir(saved)
    for model in (str(saved), "."):
        preset = resolve(model)
        assert (preset.name, preset.steps, preset.call) == ("tiny", 28, {})
        assert preset.folder and preset.folder.resolve() == saved.resolve()


@pytest.mark.parametrize("model", ["fluks", "FLUX", "flux-schnel"])
def test_a_misspelt_name_gets_the_nearest_one_and_the_list(model):
    with pytest.raises(LookupError, match=r"Did you mean .*flux.*one of: .*emoji-flux-32.*wan2\.1"):
        resolve(model)


@pytest.mark.parametrize("model", ["", "/no/such/folder", "./nowhere", "a/b/c", "no.toml"])
def test_what_is_no_model_is_refused(model):
    with pytest.raises(LookupError, match=r"no model .*hub id"):
        resolve(model)


# Loading a checkpoint


def test_a_saved_folder_loads_with_its_very_weights(saved):
    pipe = resolve(str(saved)).load_pipeline(device="cpu")
    assert type(pipe) is diffusers.DDPMPipeline
    weights = safetensors.torch.load_file(saved / "unet" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(pipe.unet.state_dict()[key], weights[key]) for key in weights)


def test_a_path_replaces_the_checkpoint(saved):
    pipe = GATED.load_pipeline(device="cpu", path=saved)
    assert type(pipe.scheduler) is diffusers.DDIMScheduler


@pytest.mark.parametrize(
    ("asked", "got"),
    [("bfloat16", torch.bfloat16), ("float16", torch.float32), ("float32", torch.float32)],
)
def test_weights_get_the_dtype_of_the_preset_but_no_float16_on_a_cpu(saved, asked, got):
    preset = HUB.model_copy(update={"dtype": asked})
    assert preset.load_pipeline(device="cpu", path=saved).unet.dtype == got


def test_a_variant_that_a_folder_lacks_is_not_asked_for(saved):
    preset = HUB.model_copy(update={"variant": "fp16"})
    plain = preset.load_pipeline(device="cpu", path=saved)
    plain.save_pretrained(saved.parent / "half", variant="fp16")
    half = preset.load_pipeline(device="cpu", path=saved.parent / "half")
    assert torch.equal(half.unet.conv_in.weight, plain.unet.conv_in.weight)


def test_the_accelerator_is_the_default_device(monkeypatch):
    asked = []
    fake = types.SimpleNamespace(to=lambda device: asked.append(device))
    monkeypatch.setattr(diffusers.DiffusionPipeline, "from_pretrained", lambda *args, **kwargs: fake)
    for kind in ("cuda", "mps", "xpu", None):
        accelerated(monkeypatch, kind)
        HUB.load_pipeline()
    assert asked == ["cuda", "mps", "xpu", "cpu"]


@pytest.mark.parametrize("device", ["cuda:99", "gpu", "meta"])
def test_a_device_that_is_not_there_is_one_line_before_the_weights_are_read(monkeypatch, device):
    monkeypatch.setattr(diffusers.DiffusionPipeline, "from_pretrained", fail(AssertionError))
    with pytest.raises(CheckpointError, match=rf"no device '{device}' here \(.*without a device") as caught:
        HUB.load_pipeline(device)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("preset", "cure"), [(HUB, "the hub cannot be reached"), (GATED, "gated: request access")])
def test_without_network_the_message_says_what_to_do(offline, preset, cure):
    with pytest.raises(CheckpointError, match=cure) as caught:
        preset.load_pipeline()
    check_one_line(caught.value)


def test_a_time_out_of_the_http_library_is_no_network(monkeypatch):
    error = errors.HfHubHTTPError.__bases__[0]("timed out")
    monkeypatch.setattr(diffusers.DiffusionPipeline, "from_pretrained", fail(error))
    with pytest.raises(CheckpointError, match="the hub cannot be reached") as caught:
        HUB.load_pipeline()
    check_one_line(caught.value)


def test_files_that_are_not_in_the_cache_are_no_network(monkeypatch):
    error = errors.LocalEntryNotFoundError("not\ncached")
    monkeypatch.setattr(diffusers.DiffusionPipeline, "from_pretrained", fail(error))
    with pytest.raises(CheckpointError, match="not on this machine") as caught:
        HUB.load_pipeline()
    check_one_line(caught.value)


def test_a_gated_repository_asks_for_access_and_login(monkeypatch):
    info = types.SimpleNamespace(siblings=[], sha="0")
    monkeypatch.setattr(pipeline_utils, "model_info", lambda *args, **kwargs: info)
    error = hub_error(errors.GatedRepoError)
    monkeypatch.setattr(pipeline_utils, "hf_hub_download", fail(error))
    with pytest.raises(CheckpointError, match=r"is gated; request access.*hf auth login") as caught:
        HUB.load_pipeline()
    check_one_line(caught.value)


def test_a_missing_repository_asks_to_check_the_name(monkeypatch, offline):
    error = hub_error(errors.RepositoryNotFoundError)
    monkeypatch.setattr(pipeline_utils, "model_info", fail(error))
    with pytest.raises(CheckpointError, match=r"the hub has no nobody/.*check the name") as caught:
        HUB.load_pipeline()
    check_one_line(caught.value)


def check_one_line(error):
    assert "nobody/no-such-model" in str(error)
    assert "--model /path/to/folder" in str(error)
    assert "\n" not in str(error)


def test_a_missing_or_empty_folder_says_what_is_missing(tmp_path):
    with pytest.raises(CheckpointError, match=r"nowhere does not exist; give the folder"):
        HUB.load_pipeline(path=tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"has no model_index\.json; give the folder"):
        resolve(str(tmp_path)).load_pipeline()


def test_a_missing_demo_model_says_how_to_train_it():
    preset = Preset(name="lost", checkpoint="demo/lost")
    with pytest.raises(CheckpointError, match=r"demo model's folder .*lost.*make demo-model"):
        preset.load_pipeline()


def test_broken_weights_are_named(saved):
    (saved / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"not weights")
    with pytest.raises(CheckpointError, match="cannot be loaded") as caught:
        resolve(str(saved)).load_pipeline()
    assert str(saved) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_package_is_named(monkeypatch):
    error = ImportError("\nFluxPipeline requires the transformers library\n")
    monkeypatch.setattr(diffusers.DiffusionPipeline, "from_pretrained", fail(error))
    with pytest.raises(CheckpointError, match="another package: FluxPipeline requires the trans"):
        HUB.load_pipeline()


def test_a_pipeline_that_diffusers_lacks_is_named():
    preset = HUB.model_copy(update={"pipeline": "FluxxPipeline"})
    with pytest.raises(CheckpointError, match=r"has no FluxxPipeline; .*update diffusers"):
        preset.load_pipeline()


def test_a_fault_that_is_not_about_the_checkpoint_is_not_hidden(monkeypatch):
    error = torch.OutOfMemoryError("CUDA out of memory")
    monkeypatch.setattr(diffusers.DiffusionPipeline, "from_pretrained", fail(error))
    with pytest.raises(torch.OutOfMemoryError):
        HUB.load_pipeline()
