"""Do the adapters watch real runs of the real libraries, and change nothing in them?"""

import json
import math
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from numgeom.diagnosis import FindingError, Monitor, diagnose
from numgeom.recording import Program
from numgeom.training import TensorBoardSteps, hugging_face_callback, lightning_callback
from numgeom.training.adapter import AdapterError


@pytest.fixture(autouse=True)
def _quiet_libraries() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the libraries warn of workers, devices and themselves
        yield


def data(*, bad: bool = False) -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(32, 6, generator=generator)
    if bad:
        x[24:] *= 1e30
    return TensorDataset(x, torch.randint(0, 3, (32,), generator=generator))


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


# -- Lightning -----------------------------------------------------------------------------


def lightning_run(folder: Path, *callbacks: Any, bad: bool = False) -> nn.Module:
    import lightning

    class Task(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = net()

        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            x, y = batch
            return nn.functional.cross_entropy(self.net(x).square(), y)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    trainer = lightning.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=list(callbacks),
    )
    task = Task()
    trainer.fit(task, DataLoader(data(bad=bad), batch_size=8))
    return task.net


def test_lightning_is_watched_and_trains_as_it_would_alone(tmp_path: Path) -> None:
    history = tmp_path / "history.jsonl"
    callback = lightning_callback(every=2, budget=math.inf, history=history)
    watched, alone = lightning_run(tmp_path, callback), lightning_run(tmp_path)
    for a, b in zip(watched.parameters(), alone.parameters(), strict=True):
        assert torch.equal(a, b)
    lines = [json.loads(line) for line in history.read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 2]
    assert "net.0.weight" in lines[0]["gradient_norms"]
    assert 0 < lines[0]["diagnosis"]["gradient_error"] < 1e-5
    assert callback.watch.monitor.last.step == 2


def test_lightning_stops_at_a_finding_and_keeps_the_step(tmp_path: Path) -> None:
    callback = lightning_callback(
        every=1, budget=math.inf, on_finding="raise", keep=tmp_path / "bad"
    )
    with pytest.raises(FindingError, match="step 3"):
        lightning_run(tmp_path, callback, bad=True)
    (kept,) = (tmp_path / "bad").iterdir()
    assert diagnose(Program.load(kept))


# -- Hugging Face --------------------------------------------------------------------------


def hugging_face_run(folder: Path, *callbacks: Any) -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=32, n_positions=8, n_embd=8, n_layer=1, n_head=2, bos_token_id=None,
        eos_token_id=None,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(0, 32, (12, 8), generator=generator)
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        num_train_epochs=1,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
        seed=0,
    )
    dataset: Any = [{"input_ids": row, "labels": row} for row in rows]
    Trainer(model=model, args=arguments, train_dataset=dataset, callbacks=list(callbacks)).train()
    return model


def test_the_hugging_face_trainer_is_watched(tmp_path: Path) -> None:
    history = tmp_path / "history.jsonl"
    callback = hugging_face_callback(every=2, budget=math.inf, history=history)
    watched, alone = hugging_face_run(tmp_path, callback), hugging_face_run(tmp_path)
    for a, b in zip(watched.parameters(), alone.parameters(), strict=True):
        assert torch.equal(a, b)
    lines = [json.loads(line) for line in history.read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 2]
    assert all(line["problem"] == "" for line in lines)
    assert "transformer.wte.weight" in lines[0]["gradient_norms"]
    assert 0 < lines[0]["diagnosis"]["gradient_error"] < 1e-4


# -- TensorBoard ---------------------------------------------------------------------------


def test_tensorboard_reads_what_was_written(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    model, steps = net(), TensorBoardSteps(tmp_path)
    monitor = Monitor(model, every=2, budget=math.inf, on_step=steps, on_finding=lambda _: None)
    for x, y in DataLoader(data(bad=True), batch_size=8):
        with monitor():
            nn.functional.cross_entropy(model(x).square(), y).backward()
    steps.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    found = events.Scalars("numgeom/gradient_error")
    assert [event.step for event in found] == [0, 2]
    assert 0 < found[0].value < 1e-5
    assert {"numgeom/underflow_share", "numgeom/headroom_binades"} <= set(events.Tags()["scalars"])
    assert "numgeom/gradient_norm/0.weight" in events.Tags()["scalars"]


# -- imports -------------------------------------------------------------------------------


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for module in ("lightning", "transformers", "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, module, None)
    for make, name in (
        (lightning_callback, "lightning"),
        (hugging_face_callback, "transformers"),
        (lambda: TensorBoardSteps(tmp_path), "tensorboard"),
    ):
        with pytest.raises(AdapterError, match=f"pip install {name}"):
            make()


def test_a_step_must_end_before_the_next() -> None:
    from numgeom.errors import NumgeomError

    monitor = Monitor(net(), every=1)
    monitor.begin()
    with pytest.raises(NumgeomError, match="end"):
        monitor.begin()
    monitor.abandon()
    monitor.begin()
    monitor.abandon()
    assert monitor.end() is None
