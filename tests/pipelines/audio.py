"""Audio pipelines."""

from __future__ import annotations

import diffusers
import transformers
from diffusers.pipelines.ace_step import AceStepConditionEncoder
from diffusers.pipelines.stable_audio import StableAudioProjectionModel
from tokenizers import Tokenizer, models, pre_tokenizers

from .setup import Setup, noise, prompts

WORDS = ("<pad>", "<unk>", "piano", "guitar", "drums", "slow", "verse", "rain")


def oobleck(channels: int) -> diffusers.AutoencoderOobleck:
    """Returns an audio autoencoder."""
    return diffusers.AutoencoderOobleck(
        encoder_hidden_size=6,
        downsampling_ratios=[1, 2],
        decoder_channels=3,
        decoder_input_channels=channels,
        audio_channels=2,
        channel_multiples=[2, 4],
        sampling_rate=4,
    )


def stable_audio() -> Setup:
    transformer = diffusers.StableAudioDiTModel(
        sample_size=32,
        in_channels=3,
        num_layers=1,
        attention_head_dim=4,
        num_attention_heads=2,
        num_key_value_attention_heads=2,
        out_channels=3,
        cross_attention_dim=4,
        time_proj_dim=8,
        global_states_input_dim=8,
        cross_attention_input_dim=4,
    )
    t5 = transformers.T5Config(vocab_size=8, d_model=4, d_kv=4, d_ff=8, num_layers=1, num_heads=1)
    projection = StableAudioProjectionModel(text_encoder_dim=4, conditioning_dim=4, min_value=0, max_value=32)
    scheduler = diffusers.CosineDPMSolverMultistepScheduler(
        solver_order=2, prediction_type="v_prediction", sigma_data=1.0, sigma_schedule="exponential"
    )
    pipe = diffusers.StableAudioPipeline(
        oobleck(3), transformers.T5EncoderModel(t5), projection, tokenizer(), transformer, scheduler
    )
    call = {"audio_end_in_s": 16.0, "negative_prompt_embeds": noise(9, 1, 5, 4)}
    return Setup(pipe, call, prompts(prompt_embeds=(5, 4)))


def tokenizer() -> transformers.PreTrainedTokenizerFast:
    """Returns a tokenizer of a few words: nothing is downloaded."""
    words = Tokenizer(models.WordLevel({word: k for k, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", unk_token="<unk>", model_max_length=16
    )


def ace_step() -> Setup:
    size = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "sliding_window": 16,
    }
    transformer = diffusers.AceStepTransformer1DModel(
        **size, num_hidden_layers=2, in_channels=24, audio_acoustic_hidden_dim=8, patch_size=2
    )
    text = transformers.Qwen3Config(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        vocab_size=len(WORDS),
    )
    encoder = AceStepConditionEncoder(
        **size,
        text_hidden_dim=16,
        timbre_hidden_dim=8,
        num_lyric_encoder_hidden_layers=1,
        num_timbre_encoder_hidden_layers=1,
    )
    pipe = diffusers.AceStepPipeline(
        oobleck(8),
        transformers.Qwen3Model(text),
        tokenizer(),
        transformer,
        encoder,
        diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=1, shift=1.0),
    )
    call = {"audio_duration": 0.8, "max_text_length": 16, "guidance_scale": 3.0}
    rows = [{"prompt": f"slow {word}", "lyrics": "verse rain"} for word in ("piano", "guitar", "drums")]
    return Setup(pipe, call, rows)


AUDIO = {"Stable Audio": stable_audio, "ACE-Step": ace_step}
