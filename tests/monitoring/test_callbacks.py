"""The callbacks in real trainers."""

import contextlib
import importlib

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from gammabeta.benchmarks.networks import load_timm
from gammabeta.monitoring.callbacks import lightning_callback, transformers_callback


def package(name):
    """Import a trainer's package or skip; both import torchvision if it is installed, so it must be importable."""
    with contextlib.suppress(ImportError):
        load_timm()
    return pytest.importorskip(name, exc_type=ImportError)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))


def data(batch_size=32):
    x = torch.randn(320, 4, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(x, (x.sum(1) > 0).long()), batch_size=batch_size)


def lightning_module(lightning, through_forward):
    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = network()

        def forward(self, x):
            return self.net(x)

        def training_step(self, batch, index):
            x, y = batch
            return nn.functional.cross_entropy((self if through_forward else self.net)(x), y)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    return Module()


def fitted(callback, through_forward=True, loader=None, **options):
    lightning = package("lightning")
    lightning = importlib.import_module("lightning.pytorch")
    trainer = lightning.Trainer(
        max_epochs=3, accelerator="cpu", devices=1, callbacks=[callback], enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, **{"logger": False, **options},
    )  # fmt: skip
    module = lightning_module(lightning, through_forward)
    trainer.fit(module, loader or data())
    return module


@pytest.mark.parametrize("through_forward", [True, False])
def test_lightning_is_watched_step_by_step_and_left_without_hooks(through_forward, tmp_path):
    package("lightning")
    numbers = []
    page = tmp_path / "health.html"
    callback = lightning_callback(every=5, report=page, log=lambda *told: numbers.append(told))
    module = fitted(callback, through_forward)
    watched = callback.watch.watched
    assert watched.steps == 30
    assert watched.norms["net.1"].calls == 30
    assert callback.diagnosis.findings == ()
    assert {step for _, _, step in numbers} >= {5, 10, 15, 20, 25}
    assert any(name.startswith("net.1") or "net.1" in name for name, _, _ in numbers)
    assert "net.1" in page.read_text(encoding="utf-8")
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())


def test_lightning_s_accumulation_is_found():
    package("lightning")
    callback = lightning_callback()
    fitted(callback, accumulate_grad_batches=4, loader=data(8))
    assert callback.watch.watched.steps == 30
    assert "GB204" in {finding.code for finding in callback.diagnosis.findings}


def test_lightning_s_loggers_get_the_numbers(tmp_path):
    package("lightning")
    loggers = importlib.import_module("lightning.pytorch.loggers")
    logger = loggers.CSVLogger(tmp_path)
    fitted(lightning_callback(every=5), logger=logger, log_every_n_steps=5)
    text = next(tmp_path.rglob("metrics.csv")).read_text(encoding="utf-8")
    assert "net.1" in text.splitlines()[0]


def test_lightning_s_training_that_raises_is_left_without_hooks():
    package("lightning")
    callback = lightning_callback()
    raised = []

    class Broken(Dataset):
        def __len__(self):
            return 64

        def __getitem__(self, index):
            if index > 40:
                raise ValueError("broken sample")
            return torch.randn(4), 0

    with pytest.raises(ValueError, match="broken sample"):
        fitted(callback, loader=DataLoader(Broken(), batch_size=8))
    raised.append(callback.watch.watched.steps)
    assert raised == [5]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in callback.watch.model.modules())


def test_transformers_is_watched_step_by_step_and_left_without_hooks(tmp_path):
    transformers = package("transformers")
    package("accelerate")

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = network()

        def forward(self, x, labels):
            scores = self.net(x)
            return {"loss": nn.functional.cross_entropy(scores, labels), "logits": scores}

    class Rows(Dataset):
        def __init__(self):
            self.x = torch.randn(320, 4, generator=torch.Generator().manual_seed(0))

        def __len__(self):
            return len(self.x)

        def __getitem__(self, index):
            return {"x": self.x[index], "labels": (self.x[index].sum() > 0).long()}

    numbers = []
    page = tmp_path / "health.html"
    callback = transformers_callback(every=5, report=page, log=lambda *told: numbers.append(told))
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path / "out"), per_device_train_batch_size=32, num_train_epochs=3, report_to=[],
        save_strategy="no", use_cpu=True, disable_tqdm=True, logging_strategy="no",
    )  # fmt: skip
    model = Model()
    trainer = transformers.Trainer(model=model, args=arguments, train_dataset=Rows(), callbacks=[callback])
    trainer.train()
    assert callback.watch.watched.steps == 30
    assert callback.watch.watched.norms["net.1"].calls == 30
    assert callback.diagnosis.findings == ()
    assert {step for _, _, step in numbers} >= {5, 10, 15, 20, 25}
    assert "net.1" in page.read_text(encoding="utf-8")
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize(
    ("build", "name", "package_name"),
    [
        (lightning_callback, "lightning_callback", "lightning"),
        (transformers_callback, "transformers_callback", "transformers"),
    ],
)
def test_a_package_that_is_not_there_is_said(build, name, package_name, monkeypatch):
    def absent(module, *_):
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)

    monkeypatch.setattr("gammabeta.monitoring.callbacks.importlib.import_module", absent)
    with pytest.raises(ImportError) as caught:
        build()
    assert str(caught.value) == (
        f"{name}: expected {package_name} to be installed, but it is not: pip install {package_name}."
    )


def test_before_the_training_there_is_no_diagnosis():
    package("lightning")
    with pytest.raises(RuntimeError) as caught:
        _ = lightning_callback().diagnosis
    assert str(caught.value) == (
        "diagnosis: expected training to have begun, but it has not: pass this callback to a trainer and start "
        "training."
    )
