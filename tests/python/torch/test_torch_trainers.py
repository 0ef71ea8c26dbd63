"""Hugging Face's Trainer and Lightning train with a remote optimizer, save, and go on from what they saved."""

from __future__ import annotations

import os

import pytest
import torch
from torch import nn

import adamant.torch as remote

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", WANDB_DISABLED="true")

STEPS = 10
HALF = STEPS // 2


def assert_near(ours, theirs):
    for key, value in theirs.items():
        torch.testing.assert_close(ours[key], value, rtol=1e-4, atol=1e-5)


@pytest.fixture
def hugging_face(tmp_path):
    """Trains a small model for so many steps, on from a checkpoint if there is one, and returns it."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")

    def build():
        torch.manual_seed(0)
        config = transformers.BertConfig(
            vocab_size=32,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=16,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        return transformers.BertForSequenceClassification(config)

    generator = torch.Generator().manual_seed(1)
    rows = [
        {"input_ids": torch.randint(32, (8,), generator=generator), "labels": torch.tensor(i % 2)} for i in range(64)
    ]

    def train(optimizer_of, folder, *, steps=STEPS, resume=None, **kwargs):
        model = build()
        arguments = transformers.TrainingArguments(
            output_dir=str(tmp_path / folder),
            max_steps=steps,
            save_steps=HALF,
            per_device_train_batch_size=4,
            learning_rate=1e-2,
            lr_scheduler_type="linear",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            logging_strategy="no",
            **kwargs,
        )
        optimizer = optimizer_of(model)
        scheduler = transformers.get_linear_schedule_with_warmup(optimizer, 2, STEPS)
        trainer = transformers.Trainer(
            model=model, args=arguments, train_dataset=rows, optimizers=(optimizer, scheduler)
        )
        trainer.train(resume_from_checkpoint=resume and str(tmp_path / resume / f"checkpoint-{HALF}"))
        return model.state_dict(), optimizer

    return train


def test_hugging_faces_trainer_trains_and_resumes(make, hugging_face):
    def ours(model):
        return make(remote.RemoteAdamW, model.parameters(), lr=1e-2, weight_decay=0.1)

    def torchs(model):
        return torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)

    expected, _ = hugging_face(torchs, "torch")
    whole, optimizer = hugging_face(ours, "whole")
    assert optimizer.last_result.step == STEPS
    assert_near(whole, expected)
    # Another program, which knows nothing but the checkpoint.
    resumed, optimizer = hugging_face(ours, "resumed", resume="whole")
    assert optimizer.last_result.step == STEPS
    for key, value in whole.items():
        assert torch.equal(resumed[key], value), key


def test_hugging_faces_trainer_accumulates_and_clips(make, hugging_face):
    kwargs = {"gradient_accumulation_steps": 2, "max_grad_norm": 0.5}
    expected, _ = hugging_face(lambda model: torch.optim.Adam(model.parameters(), lr=1e-2), "torch", **kwargs)
    got, optimizer = hugging_face(lambda model: make(remote.RemoteAdam, model.parameters(), lr=1e-2), "ours", **kwargs)
    assert optimizer.last_result.step == STEPS
    assert optimizer.last_result.grad_norm <= 0.5 + 1e-4
    assert_near(got, expected)


@pytest.fixture
def lightning(tmp_path):
    lightning = pytest.importorskip("lightning")

    class Model(lightning.LightningModule):
        def __init__(self, optimizer_of):
            super().__init__()
            torch.manual_seed(0)
            self.layers = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 2))
            self.optimizer_of = optimizer_of

        def training_step(self, batch, _):
            inputs, labels = batch
            return nn.functional.mse_loss(self.layers(inputs), labels)

        def configure_optimizers(self):
            self.optimizer = self.optimizer_of(self.parameters())
            scheduler = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, 0.1, total_steps=STEPS)
            return [self.optimizer], [{"scheduler": scheduler, "interval": "step"}]

    generator = torch.Generator().manual_seed(1)
    inputs, labels = torch.randn(8 * STEPS, 6, generator=generator), torch.randn(8 * STEPS, 2, generator=generator)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(inputs, labels), batch_size=8)

    def train(optimizer_of, *, steps=STEPS, resume=None, save=None, **kwargs):
        model = Model(optimizer_of)
        trainer = lightning.Trainer(
            max_steps=steps,
            accelerator="cpu",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=str(tmp_path),
            **kwargs,
        )
        trainer.fit(model, loader, ckpt_path=resume)
        if save:
            trainer.save_checkpoint(save)
        return model.state_dict(), model.optimizer

    return train


def test_lightning_trains_and_resumes(make, lightning, tmp_path):
    def ours(params):
        return make(remote.RemoteAdam, params, lr=1e-2)

    expected, _ = lightning(lambda params: torch.optim.Adam(params, lr=1e-2))
    whole, optimizer = lightning(ours)
    assert optimizer.last_result.step == STEPS
    assert_near(whole, expected)
    checkpoint = str(tmp_path / "half.ckpt")
    lightning(ours, steps=HALF, save=checkpoint)
    resumed, optimizer = lightning(ours, resume=checkpoint)
    assert optimizer.last_result.step == STEPS
    # Torch's goes on from the same checkpoint, on the same batches: an epoch's begin anew.
    expected, _ = lightning(lambda params: torch.optim.Adam(params, lr=1e-2), resume=checkpoint)
    assert_near(resumed, expected)


def test_lightning_clips_and_accumulates(make, lightning):
    kwargs = {"gradient_clip_val": 0.1, "accumulate_grad_batches": 2, "steps": HALF}
    expected, _ = lightning(lambda params: torch.optim.Adam(params, lr=1e-2), **kwargs)
    got, optimizer = lightning(lambda params: make(remote.RemoteAdam, params, lr=1e-2), **kwargs)
    assert optimizer.last_result.step == HALF
    assert_near(got, expected)
