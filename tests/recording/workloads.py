"""Training steps of many kinds, small and seeded, for tests that hold on any of them.

A workload is a function that builds `(model, step)`; `step()` runs forward and backward on the
model's parameters. `build(name)` seeds first.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

Step = Callable[[], Any]
Workload = Callable[[], tuple[nn.Module, Step]]


def build(name: str) -> tuple[nn.Module, Step]:
    """Make a workload, with a fixed seed."""
    torch.manual_seed(0)
    return WORKLOADS[name]()


def _classify(model: nn.Module, x: Tensor, classes: int = 5) -> Step:
    y = torch.randint(0, classes, (len(x),))

    def step() -> Tensor:
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        return loss

    return step


def _mlp(activation: Callable[[], nn.Module]) -> tuple[nn.Module, Step]:
    model = nn.Sequential(
        nn.Linear(12, 16), activation(), nn.Linear(16, 16), activation(), nn.Linear(16, 5)
    )
    return model, _classify(model, torch.randn(9, 12))


class LeNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 6, 5), nn.Conv2d(6, 16, 5)
        self.fc1, self.fc2 = nn.Linear(256, 32), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        return self.fc2(F.relu(self.fc1(x.flatten(1))))


def _lenet() -> tuple[nn.Module, Step]:
    model = LeNet()
    return model, _classify(model, torch.randn(4, 1, 28, 28))


def _lenet_channels_last() -> tuple[nn.Module, Step]:
    model = LeNet().to(memory_format=torch.channels_last)
    return model, _classify(model, torch.randn(4, 1, 28, 28).to(memory_format=torch.channels_last))


def _batch_norm_cnn(mode: bool = True) -> tuple[nn.Module, Step]:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True),
        nn.Conv2d(8, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
    ).train(mode)  # fmt: skip
    return model, _classify(model, torch.randn(4, 3, 10, 10))


def _norms() -> tuple[nn.Module, Step]:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.InstanceNorm2d(8, affine=True),
        nn.Flatten(), nn.Linear(8 * 36, 12), nn.LayerNorm(12), nn.RMSNorm(12), nn.Linear(12, 5),
    )  # fmt: skip
    return model, _classify(model, torch.randn(4, 3, 8, 8))


def _dropout() -> tuple[nn.Module, Step]:
    model = nn.Sequential(
        nn.Linear(12, 16), nn.Dropout(0.3), nn.ReLU(), nn.Linear(16, 8), nn.AlphaDropout(0.2),
        nn.RReLU(), nn.Linear(8, 5), nn.Dropout(1.0), nn.Dropout(0.0),
    )  # fmt: skip
    step = _classify(model, torch.randn(9, 12))
    return model, step


class Assigning(nn.Module):
    """Writes in place in the ways that people do."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        out = torch.empty(len(x), 12)
        h = self.fc(x)
        out[:, :6] = h
        out[:, 6:] = h.tanh()
        out[::2, 1] += 3.0
        out.mul_(0.5).add_(1)
        rest = torch.zeros(12, len(x))
        rest.t()[:, 3:7] = out[:, 3:7].sigmoid()
        view = rest.view(4, 3, -1)
        view[1].copy_(out[:, :3].t())
        rest[0].fill_(2.0)
        mask = out > 1.2
        out = out.masked_fill(mask, 0.3)
        picked = out[out > 0.9]
        chosen = torch.where(out > 0.5, out, -out)
        chosen[chosen < -0.4] = 0.25
        buffer = torch.empty(len(x), 12)
        with torch.no_grad():
            torch.add(x.sum(), 1.0, out=torch.empty(()))
            torch.mul(buffer.zero_(), 2, out=buffer)
        return chosen + rest.t() + picked.sum() + buffer + out.transpose(0, 1).clone().t_()


def _in_place() -> tuple[nn.Module, Step]:
    model = Assigning()
    x = torch.randn(5, 6)

    def step() -> None:
        model(x).pow(2).mean().backward()

    return model, step


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(4):
            x = self.fc(x)
            if x.norm().item() > 2:
                x = x / x.norm().item()
            x = x * float(x.max())
        return x


def _item() -> tuple[nn.Module, Step]:
    model = Branching()
    x = torch.randn(5, 6)

    def step() -> None:
        model(x).square().sum().backward()

    return model, step


def _checkpointed(reentrant: bool) -> tuple[nn.Module, Step]:
    body = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.2), nn.GELU(), nn.Linear(8, 8))
    model = nn.Sequential(nn.Linear(8, 8), body, nn.Linear(8, 5))
    x, y = torch.randn(6, 8), torch.randint(0, 5, (6,))

    def step() -> None:
        h = model[0](x)
        h = checkpoint(body, h, use_reentrant=reentrant)
        F.cross_entropy(model[2](h), y).backward()

    return model, step


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase], packed: bool, **options: Any) -> None:
        super().__init__()
        self.rnn = kind(6, 7, batch_first=True, **options)
        self.head = nn.Linear(7 * (2 if options.get("bidirectional") else 1), 5)
        self.packed = packed

    def forward(self, x: Tensor) -> Tensor:
        if self.packed:
            lengths = torch.tensor([5, 4, 2])
            packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True)
            out, _ = self.rnn(packed)
            out, _ = nn.utils.rnn.pad_packed_sequence(out, batch_first=True)
        else:
            out, _ = self.rnn(x)
        return self.head(out.mean(1))


def _rnn(kind: type[nn.RNNBase], *, packed: bool = False, **options: Any) -> Any:
    model = Recurrent(kind, packed, **options)
    return model, _classify(model, torch.randn(3, 5, 6))


def _attention(weights: bool) -> tuple[nn.Module, Step]:
    model = nn.MultiheadAttention(8, 2, batch_first=True, dropout=0.1 if weights else 0.0)
    x = torch.randn(2, 6, 8)

    def step() -> None:
        out, found = model(x, x, x, need_weights=weights)
        loss = out.square().mean() + (found.square().mean() if weights else 0)
        loss.backward()

    return model, step


def _encoder_layer(dropout: float) -> tuple[nn.Module, Step]:
    model = nn.Sequential(
        nn.TransformerEncoderLayer(8, 2, 16, dropout=dropout, batch_first=True),
        nn.Flatten(),
        nn.Linear(48, 5),
    )
    return model, _classify(model, torch.randn(3, 6, 8))


def _sdpa(backend: SDPBackend, *, causal: bool) -> tuple[nn.Module, Step]:
    model = nn.Linear(8, 24)
    x = torch.randn(2, 6, 8)

    def step() -> None:
        q, k, v = model(x).view(2, 6, 3, 2, 4).permute(2, 0, 3, 1, 4)
        with sdpa_kernel(backend):
            out = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
        out.pow(2).sum().backward()

    return model, step


def _autocast() -> tuple[nn.Module, Step]:
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 16),
        nn.LayerNorm(16), nn.GELU(), nn.Linear(16, 5),
    )  # fmt: skip
    x, y = torch.randn(4, 1, 8, 8), torch.randint(0, 5, (4,))

    def step() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = F.cross_entropy(model(x), y)
        loss.backward()

    return model, step


def _half(dtype: torch.dtype) -> tuple[nn.Module, Step]:
    model = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 5)).to(dtype)
    return model, _classify(model, torch.randn(9, 12).to(dtype))


def _grad_scaler() -> tuple[nn.Module, Step]:
    model = nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 5))
    x, y = torch.randn(9, 12), torch.randint(0, 5, (9,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)

    def step() -> None:
        with torch.autocast("cpu", dtype=torch.float16):
            loss = F.cross_entropy(model(x), y)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        scaler.step(optimizer)
        scaler.update()

    return model, step


def _accumulation() -> tuple[nn.Module, Step]:
    model = nn.Sequential(nn.Linear(12, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 5))
    x, y = torch.randn(2, 9, 12), torch.randint(0, 5, (2, 9))

    def step() -> None:
        for i in range(2):
            (F.cross_entropy(model(x[i]), y[i]) / 2).backward()

    return model, step


def _double_backward() -> tuple[nn.Module, Step]:
    model = nn.Sequential(
        nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8), nn.Softplus(), nn.Linear(8, 1)
    )
    x = torch.randn(6, 4, requires_grad=True)

    def step() -> None:
        (slope,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
        ((slope.norm(dim=1) - 1) ** 2).mean().backward()

    return model, step


class StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.round()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]  # one input
        (x,) = ctx.saved_tensors
        return grad * (x.abs() < 3)


def _custom_function() -> tuple[nn.Module, Step]:
    model = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 5))
    x, y = torch.randn(6, 6), torch.randint(0, 5, (6,))

    def step() -> None:
        h = StraightThrough.apply(3 * model[0](x))
        F.cross_entropy(model[1](h), y).backward()

    return model, step


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8, padding_idx=0)
        self.body = nn.Linear(8, 8)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(torch.relu(self.body(self.embed(tokens))))


def _tied() -> tuple[nn.Module, Step]:
    model = Tied()
    tokens = torch.randint(0, 11, (3, 7))

    def step() -> None:
        logits = model(tokens[:, :-1])
        F.cross_entropy(logits.reshape(-1, 11), tokens[:, 1:].reshape(-1)).backward()

    return model, step


def _frozen() -> tuple[nn.Module, Step]:
    model = nn.Sequential(
        nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 5)
    )
    model[2].requires_grad_(False)
    return model, _classify(model, torch.randn(9, 12))


def _optimizer(make: Callable[[Any], torch.optim.Optimizer], warm: int = 2) -> Any:
    """A whole training step, optimizer included, after a few steps that are not recorded."""
    model = nn.Sequential(nn.Linear(12, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, 5))
    optimizer = make(model.parameters())
    forward = _classify(model, torch.randn(9, 12))

    def step() -> None:
        optimizer.zero_grad()
        forward()
        optimizer.step()

    for _ in range(warm):
        step()
    return model, step


def _indexing() -> tuple[nn.Module, Step]:
    model = nn.Linear(6, 6)
    x, index = torch.randn(7, 6), torch.randint(0, 7, (9,))

    def step() -> None:
        h = model(x)
        parts = [h[index].mean(), h.gather(1, h.argmax(1, keepdim=True)).sum()]
        parts.append(torch.zeros(7, 6).index_add(0, index, h[index]).square().sum())
        parts.append(h.topk(2, dim=1).values.sum() + h.sort(dim=0).values[0].sum())
        parts.append(h.unfold(1, 2, 2).max(-1).values.sum() + h.cumsum(0).std())
        parts.append(torch.cat([h, h.flip(0)]).roll(1, 0).unbind(0)[2].sum())
        parts.append(h.masked_select(h > 0).sum() + torch.einsum("ij,kj->ik", h, h).tril().sum())
        parts.append(h.as_strided((3, 4), (2, 1)).sum() + h.diagonal().logsumexp(0))
        parts.append(F.pad(h, (1, 2)).abs().nan_to_num().log1p().sum())
        parts.append(F.interpolate(h[None, None], scale_factor=2.0, mode="bilinear").mean())
        torch.stack(parts).sum().backward()

    return model, step


def _losses() -> tuple[nn.Module, Step]:
    model = nn.Linear(6, 6)
    x, y = torch.randn(7, 6), torch.rand(7, 6)

    def step() -> None:
        h = model(x)
        found = [
            F.mse_loss(h, y), F.l1_loss(h, y), F.smooth_l1_loss(h, y), F.huber_loss(h, y),
            F.binary_cross_entropy_with_logits(h, y), F.kl_div(h.log_softmax(1), y.softmax(1)),
            F.binary_cross_entropy(h.sigmoid(), y), F.hinge_embedding_loss(h, y.sign()),
            F.cosine_embedding_loss(h, y, torch.ones(7)), F.triplet_margin_loss(h, y, -y),
            F.poisson_nll_loss(h, y), F.gaussian_nll_loss(h, y, y.exp()),
            torch.cdist(h, y).mean(), F.normalize(h).sum(),
        ]  # fmt: skip
        torch.stack(found).sum().backward()

    return model, step


def _no_dims() -> tuple[nn.Module, Step]:
    """Tensors without entries, of one entry, without dimensions, expanded and overlapping."""
    model = nn.Linear(4, 1)
    x = torch.randn(1, 4).expand(5, 4)
    windows = torch.randn(8).unfold(0, 4, 1)
    none = torch.randn(0, 4)

    def step() -> None:
        total = model(x).sum() + model(windows).sum() + model(none).sum()
        total = total + model.bias.squeeze() * 3 + model.weight.t().squeeze()[0]
        (total * torch.tensor(2, dtype=torch.int32)).backward()

    return model, step


def _transformers(kind: str, attention: str) -> tuple[nn.Module, Step]:
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


_ACTIVATIONS: Mapping[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "gelu-tanh": partial(nn.GELU, approximate="tanh"),
    "silu": nn.SiLU,
    "sigmoid": nn.Sigmoid,
    "softplus": nn.Softplus,
    "leaky-relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "mish": nn.Mish,
    "hardswish": nn.Hardswish,
    "prelu": nn.PReLU,
    "glu-free-relu6": nn.ReLU6,
}

_OPTIMIZERS: Mapping[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True, weight_decay=1e-2),
    "sgd-fused": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, fused=True),
    "sgd-loop": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, foreach=False),
    "adam": lambda p: torch.optim.Adam(p, 1e-2, foreach=True),
    "adam-loop": lambda p: torch.optim.Adam(p, 1e-2, amsgrad=True, foreach=False),
    "adamw-fused": lambda p: torch.optim.AdamW(p, 1e-2, fused=True),
    "adamw": lambda p: torch.optim.AdamW(p, 1e-2, foreach=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 1e-2, foreach=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, 1e-2, foreach=False),
}

_MODELS = ("gpt2", "llama", "bert", "mixtral", "t5", "whisper", "vit")

WORKLOADS: Mapping[str, Workload] = {
    **{f"mlp-{name}": partial(_mlp, make) for name, make in _ACTIVATIONS.items()},
    "lenet": _lenet,
    "lenet-channels-last": _lenet_channels_last,
    "batch-norm-cnn": _batch_norm_cnn,
    "batch-norm-cnn-eval": partial(_batch_norm_cnn, False),
    "norms": _norms,
    "dropout": _dropout,
    "in-place": _in_place,
    "item": _item,
    "checkpoint-reentrant": partial(_checkpointed, True),
    "checkpoint": partial(_checkpointed, False),
    "lstm": partial(_rnn, nn.LSTM),
    "lstm-packed": partial(_rnn, nn.LSTM, packed=True),
    "lstm-bidirectional": partial(_rnn, nn.LSTM, bidirectional=True, num_layers=2, dropout=0.2),
    "lstm-projected": partial(_rnn, nn.LSTM, packed=True, bidirectional=True, num_layers=2),
    "gru": partial(_rnn, nn.GRU, num_layers=2),
    "gru-packed": partial(_rnn, nn.GRU, packed=True),
    "rnn": partial(_rnn, nn.RNN),
    "rnn-packed": partial(_rnn, nn.RNN, packed=True, nonlinearity="relu"),
    "attention": partial(_attention, False),
    "attention-weights": partial(_attention, True),
    "encoder-layer": partial(_encoder_layer, 0.0),
    "encoder-layer-dropout": partial(_encoder_layer, 0.2),
    "sdpa-math": partial(_sdpa, SDPBackend.MATH, causal=True),
    "sdpa-flash": partial(_sdpa, SDPBackend.FLASH_ATTENTION, causal=False),
    "sdpa-flash-causal": partial(_sdpa, SDPBackend.FLASH_ATTENTION, causal=True),
    "autocast-bf16": _autocast,
    "bfloat16": partial(_half, torch.bfloat16),
    "float16": partial(_half, torch.float16),
    "float64": partial(_half, torch.float64),
    "grad-scaler": _grad_scaler,
    "accumulation": _accumulation,
    "double-backward": _double_backward,
    "custom-function": _custom_function,
    "tied": _tied,
    "frozen": _frozen,
    "indexing": _indexing,
    "losses": _losses,
    "no-dims": _no_dims,
    **{f"optimizer-{name}": partial(_optimizer, make) for name, make in _OPTIMIZERS.items()},
    **{f"hf-{m}-{a}": partial(_transformers, m, a) for m in _MODELS for a in ("eager", "sdpa")},
    **{f"hf-{m}": partial(_transformers, m, "eager") for m in ("mamba", "resnet", "convnext")},
}
