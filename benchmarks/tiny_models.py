"""Which small models are measured? Configurations of transformers with random weights, and a GPT.

Not a benchmark itself: other scripts import it.
"""

import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported: nothing is downloaded

import torch
from torch import Tensor, nn

from numgeom.examples import EXAMPLES, load_example
from numgeom.examples.models import GPT, LeNet5

ATTENTION = ("eager", "sdpa")
WITH_ATTENTION = ("gpt2", "llama", "bert", "mixtral", "t5", "whisper", "vit")
WITHOUT_ATTENTION = ("mamba", "resnet", "convnext")


class Model(NamedTuple):
    """A step: the loss is `loss_fn(model, batch)`."""

    name: str
    model: nn.Module
    loss_fn: Callable[[nn.Module, Any], Tensor]
    batch: Any


def examples(batch_size: int = 16) -> Iterator[Model]:
    """The built-in examples."""
    for name in EXAMPLES:
        yield Model(name, *load_example(name, batch_size=batch_size))


def transformers_models(*, quick: bool = False) -> Iterator[Model]:
    """The tiny transformers models; for a quick look three of them."""
    chosen = [(kind, how) for kind in WITH_ATTENTION for how in ATTENTION]
    chosen += [(kind, "") for kind in WITHOUT_ATTENTION]
    if quick:
        chosen = [("gpt2", "sdpa"), ("llama", "eager"), ("resnet", "")]
    for kind, how in chosen:
        yield transformers_model(kind, how)


def transformers_model(kind: str, attention: str) -> Model:
    """A tiny model of a kind, with random weights, and a batch."""
    import transformers as hf

    torch.manual_seed(0)
    small: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    text: dict[str, Any] = {**small, "intermediate_size": 32, "vocab_size": 40}
    tokens = torch.randint(1, 40, (2, 8))
    mask = torch.ones(2, 8, dtype=torch.long)
    mask[1, 5:] = 0
    batch: dict[str, Any] = {"input_ids": tokens, "labels": tokens, "attention_mask": mask}
    if kind in ("vit", "resnet", "convnext"):
        batch = {"pixel_values": torch.randn(2, 3, 32, 32), "labels": torch.tensor([0, 1])}
    elif kind == "whisper":
        batch = {"input_features": torch.randn(2, 8, 20), "labels": tokens}
    elif kind == "mamba":
        batch.pop("attention_mask")

    def made(family: Any, config: Any) -> nn.Module:
        return family._from_config(config, attn_implementation=attention or "eager")

    if kind == "gpt2":
        config = hf.GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=40, n_positions=16)
        model = made(hf.GPT2LMHeadModel, config)
    elif kind == "llama":
        model = made(hf.LlamaForCausalLM, hf.LlamaConfig(**text, num_key_value_heads=1))
    elif kind == "bert":
        model = made(hf.BertForMaskedLM, hf.BertConfig(**text))
    elif kind == "mixtral":
        config = hf.MixtralConfig(**text, num_key_value_heads=1, num_local_experts=3)
        model: Any = made(hf.MixtralForCausalLM, config)
        model.set_experts_implementation("eager")  # grouped products have no float64 kernel
    elif kind == "t5":
        config = hf.T5Config(
            d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, vocab_size=40,
            decoder_start_token_id=0,
        )  # fmt: skip
        model = made(hf.T5ForConditionalGeneration, config)
    elif kind == "whisper":
        config = hf.WhisperConfig(
            vocab_size=40, d_model=16, encoder_layers=1, decoder_layers=1,
            encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=32,
            decoder_ffn_dim=32, num_mel_bins=8, max_source_positions=10, pad_token_id=0,
            bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
        )  # fmt: skip
        model = made(hf.WhisperForConditionalGeneration, config)
    elif kind == "vit":
        config = hf.ViTConfig(**small, intermediate_size=32, image_size=32, patch_size=8)
        model = made(hf.ViTForImageClassification, config)
    elif kind == "mamba":
        config = hf.MambaConfig(hidden_size=16, num_hidden_layers=2, vocab_size=40, state_size=4)
        model = hf.MambaForCausalLM(config)
    elif kind == "resnet":
        config = hf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])
        model = hf.ResNetForImageClassification(config)
    else:
        config = hf.ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2)
        model = hf.ConvNextForImageClassification(config)
    name = f"hf-{kind}-{attention}" if attention else f"hf-{kind}"
    return Model(name, model.train(), lambda model, batch: model(**batch).loss, batch)


def wide_gpt(sequences: int) -> Model:
    """The GPT whose cost is measured: width 256, 4 layers, sequences of 128 tokens."""
    torch.manual_seed(0)
    model = GPT(100, 128, width=256, depth=4, heads=8)
    tokens, targets = torch.randint(0, 100, (2, sequences, 128))

    def loss_fn(model: nn.Module, batch: Any) -> Tensor:
        return nn.functional.cross_entropy(model(batch[0]).flatten(0, 1), batch[1].flatten())

    return Model(f"GPT, {sequences} x 128 tokens", model, loss_fn, (tokens, targets))


def planned_models(batch_size: int = 16) -> Iterator[tuple[Model, list[Any]]]:
    """Six models to plan for, and three further batches of each."""
    seeds = (1, 2, 3)
    for name in EXAMPLES:
        others = [load_example(name, seed=s, batch_size=batch_size).batch for s in seeds]
        yield Model(name, *load_example(name, batch_size=batch_size)), others
    _, loss_fn, batch = load_example("digits-lenet", batch_size=batch_size)
    others = [load_example("digits-lenet", seed=s, batch_size=batch_size).batch for s in seeds]
    torch.manual_seed(0)
    yield Model("LeNet with batch norm", LeNet5(10, batch_norm=True), loss_fn, batch), others
