"""The two tokenizers and the two tiny text encoders of the demo model."""

import json
import string
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from sentencepiece import SentencePieceNormalizer
from sentencepiece.sentencepiece_model_pb2 import ModelProto
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from .data import BACKGROUNDS, caption, load_emoji

WIDTH = 128
T5_TOKENS = 16  # what callers pass as max_sequence_length
CLIP_TOKENS = 24  # longer, because rare words are several pieces
CLIP_VOCABULARY = 2048
CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,;:!?'\"()&+/#*%$@"


def count_words(captions: Iterable[str]) -> Counter:
    """Count the words of captions."""
    return Counter(word for text in captions for word in text.split())


def _lowercase_charsmap() -> bytes:
    """Compile "lowercase, hyphen to space", the only normaliser T5Tokenizer keeps when saved."""
    rules = [f"{ord(upper):X}\t{ord(upper.lower()):X}" for upper in string.ascii_uppercase]
    rules.append(f"{ord('-'):X}\t{ord(' '):X}")
    with tempfile.NamedTemporaryFile("w", suffix=".tsv") as table:
        table.write("\n".join(rules) + "\n")
        table.flush()
        model = SentencePieceNormalizer(rule_tsv=table.name).serialized_model_proto()
    return ModelProto.FromString(model).normalizer_spec.precompiled_charsmap


def build_t5_tokenizer(words: Counter) -> T5Tokenizer:
    """Build a unigram tokenizer: known words whole, unknown ones in characters."""
    # A whole word must score higher than any way to spell it.
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -12.0)]
    pieces += [(character, -12.0) for character in CHARACTERS]
    pieces += [(f"▁{word}", -1.0) for word, _ in words.most_common()]
    return T5Tokenizer(
        vocab=pieces,
        extra_ids=0,
        model_max_length=T5_TOKENS,
        _spm_precompiled_charsmap=_lowercase_charsmap(),
    )


def build_clip_tokenizer(words: Counter) -> CLIPTokenizer:
    """Train a small byte-level BPE on the words of the captions."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    specials = ["<|startoftext|>", "<|endoftext|>"]
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    # The very splitting that the tokenizer will do, so that merges apply.
    bpe.pre_tokenizer = CLIPTokenizer().backend_tokenizer.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=CLIP_VOCABULARY,
        initial_alphabet=letters,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    bpe.train_from_iterator(words.elements(), trainer)
    learned = json.loads(bpe.to_str())["model"]
    vocabulary = dict(learned["vocab"])
    # Training keeps only endings it has seen; any other letter may end a word too.
    for token in [f"{letter}</w>" for letter in letters] + specials:
        vocabulary.setdefault(token, len(vocabulary))
    merges = [tuple(merge) for merge in learned["merges"]]
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=CLIP_TOKENS)


def load_tokenizers(folder: Path) -> tuple[CLIPTokenizer, T5Tokenizer]:
    """Build both tokenizers on the first call and keep them in `folder`."""
    return kept_tokenizers(folder, lambda: [caption(name, c) for name in load_emoji()[0] for c in BACKGROUNDS])


def kept_tokenizers(folder: Path, captions: Callable[[], list[str]]) -> tuple[CLIPTokenizer, T5Tokenizer]:
    """Read tokenizers from `folder`, or build them for captions on the first call and keep them there.

    They are kept because training a BPE breaks ties at random: another build numbers a few
    dozen rare pieces differently, and the embeddings would no longer fit.
    """
    clip_folder, t5_folder = folder / "tokenizer", folder / "tokenizer_2"
    if not t5_folder.exists():
        words = count_words(captions())
        build_clip_tokenizer(words).save_pretrained(clip_folder)
        build_t5_tokenizer(words).save_pretrained(t5_folder)
    return CLIPTokenizer.from_pretrained(clip_folder), T5Tokenizer.from_pretrained(t5_folder)


def kept_tokenizer(folder: Path, build: Callable[[], T5Tokenizer]) -> T5Tokenizer:
    """Read a tokenizer from `folder`, or build it on the first call and keep it there."""
    if not folder.exists():
        build().save_pretrained(folder)
    return T5Tokenizer.from_pretrained(folder)


def build_clip_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Build the encoder whose pooled output (at the first end token) modulates the blocks."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            projection_dim=WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=CLIP_TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def build_t5_encoder(tokenizer: T5Tokenizer) -> T5EncoderModel:
    """Build the encoder whose token states the image tokens attend to."""
    return T5EncoderModel(
        T5Config(
            vocab_size=len(tokenizer),
            d_model=WIDTH,
            d_kv=32,
            d_ff=4 * WIDTH,
            num_layers=2,
            num_heads=4,
            dropout_rate=0.0,
            feed_forward_proj="relu",
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


def tokenize(tokenizer: CLIPTokenizer | T5Tokenizer, prompts: list[str]) -> torch.Tensor:
    """Tokenize as FluxPipeline does: padded, cut to the tokenizer's length, no mask.

    Returns:
        Token ids with shape (len(prompts), tokenizer.model_max_length).
    """
    options = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
    return tokenizer(prompts, max_length=tokenizer.model_max_length, **options).input_ids
