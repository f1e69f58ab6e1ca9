"""The callbacks in real trainers."""

import contextlib
import csv
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
            loss = nn.functional.cross_entropy((self if through_forward else self.net)(x), y)
            self.log("loss", loss)
            return loss

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


def rows_of(folder):
    """Return the rows of a CSVLogger's files that hold values of the watch, and the names of those values."""
    (path,) = folder.rglob("metrics.csv")
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    names = [name for name in rows[0] if "/" in name]
    return [row for row in rows if any(row[name] for name in names)], names


def of_wandb(lightning):
    """Return a logger with the interface of Lightning's for W&B, and what it was given."""
    given = []

    class Run(lightning.loggers.Logger):
        name, version = "run", "0"

        def log_metrics(self, metrics, step=None):
            given.append((dict(metrics), step))

        def log_hyperparams(self, params, *args, **kwargs):
            pass

    return Run(), given


def test_lightning_s_loggers_get_one_row_per_measured_step_at_the_trainer_s_steps(tmp_path):
    package("lightning")
    lightning = importlib.import_module("lightning.pytorch")
    run, given = of_wandb(lightning)
    loggers = [lightning.loggers.CSVLogger(tmp_path), run]
    with contextlib.suppress(ImportError):
        loggers.append(lightning.loggers.TensorBoardLogger(tmp_path / "board"))
    fitted(lightning_callback(every=5), logger=loggers, log_every_n_steps=1)
    measured = [0, 1, 2, 4, 5, 10, 15, 20, 25]
    watched = [(values, step) for values, step in given if any("/" in name for name in values)]
    assert [step for _, step in watched] == measured
    every = set(watched[-1][0])
    assert {"net.1/mean", "net.1/gap", "net.1/weight_grad", "net.1/drift", "input/order"} <= every
    # A drift needs a step before, and the order of the inputs needs 16 batches.
    for values, step in watched:
        missing = ({"net.1/drift"} if step == 0 else set()) | ({"input/order", "input/apart"} if step < 15 else set())
        assert set(values) == every - missing
    # Where Lightning logs a loss itself, and at the same steps.
    theirs = [step for values, step in given if "loss" in values]
    assert theirs == list(range(30))
    rows, names = rows_of(tmp_path)
    assert [int(row["step"]) for row in rows] == measured
    assert set(names) == every
    assert all(row[name] for row in rows[6:] for name in names)
    assert all(row[name] for row in rows for name in names if name.startswith("net.1/") and name != "net.1/drift")
    if len(loggers) == 3:
        accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
        (path,) = (tmp_path / "board").rglob("events.out*")
        board = accumulator.EventAccumulator(str(path)).Reload()
        assert [event.step for event in board.Scalars("net.1/mean")] == measured


def test_lightning_s_steps_go_on_after_a_resume(tmp_path):
    package("lightning")
    lightning = importlib.import_module("lightning.pytorch")
    options = {"log_every_n_steps": 1, "enable_checkpointing": True, "default_root_dir": tmp_path}
    steps = []
    for epochs, path in ((1, None), (3, "last.ckpt")):
        run, given = of_wandb(lightning)
        trainer = lightning.Trainer(
            max_epochs=epochs, accelerator="cpu", devices=1, callbacks=[lightning_callback(every=5)], logger=[run],
            enable_progress_bar=False, enable_model_summary=False, **options,
        )  # fmt: skip
        resumed = None if path is None else tmp_path / path
        trainer.fit(lightning_module(lightning, True), data(), ckpt_path=resumed, weights_only=False)
        trainer.save_checkpoint(tmp_path / "last.ckpt")
        steps.append([step for values, step in given if any("/" in name for name in values)])
    assert steps == [[0, 1, 2, 4, 5], [10, 11, 12, 14, 15, 20, 25]]


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


class Model(nn.Module):
    """A model with the interface that transformers' trainer expects."""

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


def transformers_trainer(folder, callbacks=(), epochs=3, **options):
    transformers = package("transformers")
    package("accelerate")
    arguments = transformers.TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=32, num_train_epochs=epochs, report_to=[], use_cpu=True,
        **{"logging_strategy": "no", "save_strategy": "no", "disable_tqdm": True, **options},
    )  # fmt: skip
    return transformers.Trainer(model=Model(), args=arguments, train_dataset=Rows(), callbacks=list(callbacks))


def test_transformers_is_watched_step_by_step_and_left_without_hooks(tmp_path):
    package("transformers")
    numbers = []
    page = tmp_path / "health.html"
    callback = transformers_callback(every=5, report=page, log=lambda *told: numbers.append(told))
    trainer = transformers_trainer(tmp_path / "out", [callback])
    trainer.train()
    assert callback.watch.watched.steps == 30
    assert callback.watch.watched.norms["net.1"].calls == 30
    assert callback.diagnosis.findings == ()
    assert {step for _, _, step in numbers} >= {5, 10, 15, 20, 25}
    assert "net.1" in page.read_text(encoding="utf-8")
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in trainer.model.modules())


def test_a_page_that_cannot_be_written_does_not_end_a_training(tmp_path):
    package("transformers")
    (tmp_path / "file").touch()
    callback = transformers_callback(every=5, report=tmp_path / "file" / "health.html", log=lambda *told: None)
    trainer = transformers_trainer(tmp_path / "out", [callback], epochs=1)
    with pytest.warns(UserWarning, match=r"health.html could not be written: .*callback\.watch\.report\(path\)"):
        assert trainer.train().global_step == 10
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in trainer.model.modules())
    assert "net.1" in callback.watch.report(tmp_path / "health.html").read_text(encoding="utf-8")


def recording():
    """Return a callback as the reporters of transformers are, and what it was given."""
    given = []

    class Reporter(package("transformers").TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            given.append((state.global_step, dict(logs)))

    return Reporter(), given


@pytest.mark.parametrize("disable_tqdm", [True, False])
def test_transformers_logs_one_dict_per_measured_step_through_the_trainer(disable_tqdm, tmp_path, capfd):
    options = {"save_strategy": "epoch", "logging_strategy": "steps", "logging_steps": 5, "disable_tqdm": disable_tqdm}
    measured, steps = [1, 2, 3, 5, 6, 11, 16, 21, 26], []
    for epochs in (1, 3):
        reporter, given = recording()
        trainer = transformers_trainer(tmp_path, [reporter], epochs, **options)
        trainer.add_callback(transformers_callback(trainer, every=5))
        printers = list(trainer.callback_handler.callbacks)
        trainer.train(resume_from_checkpoint=epochs > 1)
        assert trainer.callback_handler.callbacks == printers
        watched = [(step, logs) for step, logs in given if "net.1/mean" in logs]
        steps.append([step for step, _ in watched])
        assert all({"net.1/gap", "net.1/weight_grad", "epoch"} <= set(logs) for _, logs in watched)
        assert {step for step, logs in given if "loss" in logs} >= {5 + 10 * (epochs > 1)}
    assert steps == [measured[:5], [11, 12, 13, 15, 16, 21, 26]]
    history = [entry["step"] for entry in trainer.state.log_history if "net.1/mean" in entry]
    assert history == steps[0] + steps[1]
    out, err = capfd.readouterr()
    assert "loss" in out + err
    assert "net.1/" not in out + err


def test_transformers_without_its_trainer_keeps_the_values_in_the_history(tmp_path):
    package("transformers")
    trainer = transformers_trainer(tmp_path, [transformers_callback(every=5)])
    trainer.train()
    entries = [entry for entry in trainer.state.log_history if "net.1/mean" in entry]
    assert [entry["step"] for entry in entries] == [1, 2, 3, 5, 6, 11, 16, 21, 26]
    assert all("epoch" in entry for entry in entries)


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
