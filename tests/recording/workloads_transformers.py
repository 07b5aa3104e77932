"""Tiny models of transformers, from configurations with random weights."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn


def transformers_step(kind: str, attention: str) -> tuple[nn.Module, Callable[[], Any]]:
    """A model and its training step; `attention` is "eager" or "sdpa"."""
    import transformers as hf

    small: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    text: dict[str, Any] = {**small, "intermediate_size": 32, "vocab_size": 40}
    tokens = torch.randint(1, 40, (2, 8))
    image = torch.randn(2, 3, 32, 32)
    labels = torch.tensor([0, 1])
    mask = torch.ones(2, 8, dtype=torch.long)
    mask[1, 5:] = 0
    inputs: dict[str, Any] = {"input_ids": tokens, "labels": tokens, "attention_mask": mask}
    if kind == "gpt2":
        config = hf.GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=40, n_positions=16)
        model = hf.GPT2LMHeadModel._from_config(config, attn_implementation=attention)
    elif kind == "llama":
        config = hf.LlamaConfig(**text, num_key_value_heads=1)
        model = hf.LlamaForCausalLM._from_config(config, attn_implementation=attention)
    elif kind == "bert":
        config = hf.BertConfig(**text)
        model = hf.BertForMaskedLM._from_config(config, attn_implementation=attention)
    elif kind == "mixtral":
        config = hf.MixtralConfig(**text, num_key_value_heads=1, num_local_experts=3)
        model = hf.MixtralForCausalLM._from_config(config, attn_implementation=attention)
        if attention == "eager":
            model.set_experts_implementation("eager")
    elif kind == "mamba":
        config = hf.MambaConfig(hidden_size=16, num_hidden_layers=2, vocab_size=40, state_size=4)
        model = hf.MambaForCausalLM(config)
        inputs.pop("attention_mask")
    elif kind == "t5":
        config = hf.T5Config(
            decoder_start_token_id=0,
            d_model=16,
            d_kv=8,
            d_ff=32,
            num_layers=2,
            num_heads=2,
            vocab_size=40,
        )
        model = hf.T5ForConditionalGeneration._from_config(config, attn_implementation=attention)
    elif kind == "whisper":
        config = hf.WhisperConfig(
            vocab_size=40, d_model=16, encoder_layers=1, decoder_layers=1,
            encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=32,
            decoder_ffn_dim=32, num_mel_bins=8, max_source_positions=10, pad_token_id=0,
            bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
        )  # fmt: skip
        model = hf.WhisperForConditionalGeneration._from_config(
            config, attn_implementation=attention
        )
        inputs = {"input_features": torch.randn(2, 8, 20), "labels": tokens}
    elif kind == "vit":
        config = hf.ViTConfig(**small, intermediate_size=32, image_size=32, patch_size=8)
        model = hf.ViTForImageClassification._from_config(config, attn_implementation=attention)
        inputs = {"pixel_values": image, "labels": labels}
    elif kind == "resnet":
        config = hf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])
        model = hf.ResNetForImageClassification(config)
        inputs = {"pixel_values": image, "labels": labels}
    else:
        config = hf.ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2)
        model = hf.ConvNextForImageClassification(config)
        inputs = {"pixel_values": image, "labels": labels}
    model.train()

    def step() -> None:
        model(**inputs).loss.backward()

    return model, step
