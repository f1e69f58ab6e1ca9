"""Rules that see training: the harm that each one states, and that healthy training has no findings."""

import contextlib
import functools

import pytest
import torch
import torch.utils.checkpoint
from torch import nn

import gammabeta as gb
from gammabeta.diagnostics.measurement import Given
from gammabeta.diagnostics.rules import RULES
from gammabeta.introspection.sampled import InputOrder, sample


def trained(code, which):
    torch.manual_seed(0)
    rule = next(rule for rule in RULES if rule.code == code)
    example = getattr(rule, which)()
    with gb.watch(example.model, example.optimizer) as watch:
        example.train()
    return example.model, watch


def test_forwards_without_gradient_pull_the_running_mean_away_and_held_ones_do_not():
    far = {}
    for which in ("flagged", "clean"):
        model, watch = trained("GB110", which)
        x = model[0](torch.randn(4096, 4)).detach()
        far[which] = ((model[1].running_mean - x.mean(0)).abs() / x.std(0)).max().item()
        assert watch.watched.norms["1"].polluting == (10 if which == "flagged" else 0)
    assert far["flagged"] > 3
    # After ten steps 0.35 of the initial zeros is left, of means of less than a deviation; and sampling of 32.
    assert far["clean"] < 1


def test_a_checkpoint_moves_torch_s_layer_twice_and_an_adopted_one_once():
    for which, count in (("flagged", 20), ("clean", 10)):
        model, _ = trained("GB111", which)
        assert model[0][1].num_batches_tracked == count


def test_micro_batches_move_the_statistics_each_and_gathered_ones_once_a_step():
    for which, count in (("flagged", 32), ("clean", 8)):
        model, _ = trained("GB204", which)
        assert model[1].num_batches_tracked == count


def test_the_running_mean_of_mixed_domains_fits_neither():
    model, _ = trained("GB206", "flagged")
    with torch.no_grad():
        source, target = model[0](torch.randn(4096, 4)), model[0](torch.randn(4096, 4) + 5)
    farthest = (target.mean(0) - source.mean(0)).abs().argmax()
    for domain in (source, target):
        distance = (model[1].running_mean - domain.mean(0)).abs() / domain.std(0)
        assert distance[farthest] > 1


def test_the_order_of_batches_is_told_from_shuffled_ones():
    torch.manual_seed(0)
    for ordered in (False, True):
        order = InputOrder()
        for step in range(64):
            classes = torch.full((32, 1), step % 3) if ordered else torch.randint(3, (32, 1))
            order.add(torch.randn(32, 4) + 2 * classes)
        ratio, _ = order.measure()
        assert ratio > 4 if ordered else 0.5 < ratio < 2


@pytest.mark.parametrize("samples", [2, 8, 32])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.95])
def test_the_effective_number_is_that_of_the_variance_of_batch_means(samples, share):
    """Return a batch in which `share` of the variance is common to all positions of a sample."""
    generator = torch.Generator().manual_seed(samples)
    batches = [
        share**0.5 * torch.randn(samples, 64, 1, generator=generator)
        + (1 - share) ** 0.5 * torch.randn(samples, 64, 49, generator=generator)
        for _ in range(200)
    ]
    means = torch.stack([x.mean((0, 2)) for x in batches])
    found = torch.stack([sample(x).effective() for x in batches]).median()
    true = 1 / means.var(0).mean()
    # 64 channels of 200 batches: a standard error of 1 % of the truth. A mean of ratios is not the ratio of the means:
    # from 2 samples whose positions are half alike it is high by 0.44 of the truth.
    torch.testing.assert_close(found, true, rtol=0.1 if samples > 2 else 0.5, atol=0)
    # σ² is 1. 200·64 channels give it to 0.02 at most; without the error of the mean it would be low by 1/N.
    variance = torch.stack([sample(x).var + sample(x).error for x in batches]).mean()
    assert float(variance) == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("samples", [2, 3, 4, 32])
def test_without_positions_a_batch_is_worth_its_samples(samples):
    """A batch of two has a mean that is off by 1/√2 = 0.707 standard deviations."""
    x = torch.randn(2000, samples, 16, generator=torch.Generator().manual_seed(samples))
    assert float(sample(x[0]).effective()) == pytest.approx(samples)
    assert Given.of(x[0]).effective == pytest.approx(samples)
    # 32,000 means: their spread is known to 0.4 %.
    assert float(x.mean(1).std()) == pytest.approx(samples**-0.5, rel=0.02)


def small_network():
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2), nn.BatchNorm2d(16), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10),
    )  # fmt: skip


# The rules' advice.
CARE = ["frozen", "gathered", "checkpointed", "ghost"]


@pytest.mark.parametrize("how", ["plain", "amp", "evaluated between", "adopted", "two views", "momentum none", *CARE])
def test_healthy_training_is_left_in_peace(how):
    torch.manual_seed(0)
    datasets = pytest.importorskip("sklearn.datasets")
    data = datasets.load_digits()
    x = torch.tensor(data.images).float()[:, None] / 16
    y = torch.tensor(data.target)
    model = small_network()
    if how == "adopted":
        gb.adopt(model)
    if how == "momentum none":
        model[1].momentum = None
    if how == "frozen":
        gb.recalibrate(model, [x])
        gb.freeze(model)
    if how in ("gathered", "checkpointed"):
        gb.adopt(model)
    if how == "ghost":
        gb.set_statistics(model, gb.statistics.Ghost(16))
    if how == "checkpointed":
        forward = model.forward
        model.forward = functools.partial(torch.utils.checkpoint.checkpoint, forward, use_reentrant=False)
    # Frozen statistics do not bound the activations: at 0.1 the training does diverge.
    rate = 0.01 if how == "frozen" else 0.1
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
    with gb.watch(model, optimizer) as watch:
        for _ in range(3):
            model.train()
            for part in torch.randperm(len(x)).split(64):
                optimizer.zero_grad()
                if how == "gathered":
                    with gb.accumulate_statistics(model):
                        for micro in part.split(16):
                            nn.functional.cross_entropy(model(x[micro]), y[micro]).backward()
                    optimizer.step()
                    continue
                with torch.autocast("cpu", enabled=how == "amp"):
                    loss = nn.functional.cross_entropy(model(x[part]), y[part])
                    if how == "two views":
                        view = x[part] + 0.05 * torch.randn_like(x[part])
                        loss = loss + nn.functional.cross_entropy(model(view), y[part])
                loss.backward()
                optimizer.step()
            if how == "evaluated between":
                with torch.no_grad():
                    model.eval()(x[:100])
    found = watch.diagnosis(select=[rule.code for rule in RULES if "W" in rule.sees]).findings
    assert found == ()


# Recipes with several forwards per step.
def sam(model, optimizer, batches, how):
    """Two forwards per step, the second with weights that were moved up the gradient (Foret et al. 2021)."""
    for x, y in batches:
        nn.functional.cross_entropy(model(x), y).backward()
        norm = torch.stack([p.grad.norm() for p in model.parameters()]).norm()
        moves = [0.05 * p.grad / norm for p in model.parameters()]
        with torch.no_grad():
            for p, move in zip(model.parameters(), moves, strict=True):
                (p.data if how == "data" else p).add_(move)
        optimizer.zero_grad()
        with gb.frozen_statistics(model) if how == "frozen" else contextlib.nullcontext():
            nn.functional.cross_entropy(model(x), y).backward()
        with torch.no_grad():
            for p, move in zip(model.parameters(), moves, strict=True):
                (p.data if how == "data" else p).sub_(move)
        optimizer.step()
        optimizer.zero_grad()


def digits(count=40, size=64):
    datasets = pytest.importorskip("sklearn.datasets")
    data = datasets.load_digits()
    x, y = torch.tensor(data.images).float()[:, None] / 16, torch.tensor(data.target)
    chosen = (torch.randperm(len(x))[:size] for _ in range(count))
    return [(x[part], y[part]) for part in chosen]


WATCHED = [rule.code for rule in RULES if "W" in rule.sees]


@pytest.mark.parametrize("how", ["version", "data", "frozen"])
def test_sam_s_second_forward_is_no_gradient_accumulation(how):
    torch.manual_seed(0)
    model = small_network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    with gb.watch(model, optimizer) as watch:
        sam(model, optimizer, digits(), how)
    findings = watch.diagnosis(select=WATCHED).findings
    if how == "frozen":
        assert findings == ()
        return
    (finding,) = findings
    assert (finding.code, finding.severity, finding.where) == ("GB204", "note", "1")
    assert finding.message == (
        "of the forwards of an optimizer step, 1 ran with other parameters than the one before, and moved the running "
        "statistics (and those of 1 more) too, which now also describe those parameters"
    )
    assert "gammabeta.frozen_statistics(model)" in str(finding.fix)


def test_a_line_search_is_no_gradient_accumulation():
    torch.manual_seed(0)
    model = small_network()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=4)
    with gb.watch(model, optimizer) as watch:
        for x, y in digits(12):

            def closure(x=x, y=y):
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(model(x), y)
                loss.backward()
                return loss

            optimizer.step(closure)
    assert {finding.severity for finding in watch.diagnosis(select=WATCHED).findings} <= {"note"}


@pytest.mark.parametrize("distance", [0.3, 1.0, 5.0])
def test_a_gan_s_discriminator_is_not_told_to_shuffle(distance):
    """Its forwards alternate between real and fake samples, whatever the loader's order."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.LeakyReLU(0.2), nn.Linear(8, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    loss = nn.functional.binary_cross_entropy_with_logits
    with gb.watch(model, optimizer) as watch:
        for _ in range(40):
            optimizer.zero_grad()
            real, fake = torch.randn(64, 4) + distance, torch.randn(64, 4)
            loss(model(real), torch.ones(64, 1)).backward()
            loss(model(fake), torch.zeros(64, 1)).backward()
            optimizer.step()
    assert "GB208" not in {finding.code for finding in watch.diagnosis(select=WATCHED).findings}


def test_sorted_batches_are_found_in_accumulating_training_too():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with gb.watch(model, optimizer) as watch:
        for step in range(40):
            for _ in range(2):
                model(torch.randn(32, 4) + 2 * (step % 3)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert {finding.code for finding in watch.diagnosis(select=WATCHED).findings} == {"GB204", "GB208"}


@pytest.mark.parametrize(("count", "severity"), [(1, "note"), (10, "warning")])
def test_one_forward_without_gradient_among_many_is_a_note(count, severity):
    torch.manual_seed(0)
    model = small_network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with gb.watch(model, optimizer) as watch:
        with torch.no_grad():
            for _ in range(count):
                model(torch.zeros(2, 1, 8, 8))
        for x, y in digits(30):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    found = watch.diagnosis(select="GB110").findings
    assert {finding.severity for finding in found} == {severity}
    assert len(found) == (1 if severity == "note" else 2)
    start = f"{count} forward{'' if count == 1 else 's'} in training mode with gradients off"
    assert all(finding.message.startswith(start) for finding in found)


def gan(parts):
    """Train a discriminator by the usual loop, in which the generator's forward adds to gradients zeroed later."""
    torch.manual_seed(0)
    critic = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.LazyLinear(1))
    critic(torch.randn(2, 3, 8, 8))
    generator = nn.Sequential(nn.Linear(8, 192), nn.BatchNorm1d(192, affine=False), nn.Unflatten(1, (3, 8, 8)))
    optimizer = torch.optim.Adam(critic.parameters(), 1e-3)
    other = torch.optim.Adam(generator.parameters(), 1e-3)
    with gb.watch(critic, optimizer) as watch:
        for _ in range(12):
            optimizer.zero_grad()
            critic(torch.randn(16, 3, 8, 8)).neg().exp().mean().backward()
            for _ in range(parts - 1):
                critic(generator(torch.randn(16, 8)).detach()).exp().mean().backward()
            optimizer.step()
            other.zero_grad()
            critic(generator(torch.randn(16, 8))).neg().exp().mean().backward()
            other.step()
    return watch


def test_a_generator_s_forward_through_its_discriminator_is_no_accumulation():
    assert not gan(1).diagnosis(select="GB204").findings
    (finding,) = gan(2).diagnosis(select="GB204").findings
    assert finding.severity == "note"
    assert "2 forwards, each with a backward, per optimizer step, beside 1 on inputs with gradients" in finding.message
    assert "real and fake" in finding.message
    assert "parts of one batch" in finding.message


def test_a_part_of_a_model_whose_inputs_all_require_gradients_accumulates_as_any_other():
    torch.manual_seed(0)
    first, head = nn.Linear(4, 8), nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    optimizer = torch.optim.SGD([*first.parameters(), *head.parameters()], lr=0.01)
    with gb.watch(head, optimizer) as watch:
        for _ in range(8):
            for _ in range(4):
                head(first(torch.randn(16, 4))).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    (finding,) = watch.diagnosis(select="GB204").findings
    assert finding.severity == "warning"
    assert finding.message.startswith("4 forwards, each with a backward, per optimizer step")


@pytest.mark.parametrize("shift", [0.0, 3.0])
@pytest.mark.parametrize("critic_steps", [1, 5])
def test_forwards_without_gradient_on_the_same_inputs_in_every_step_are_a_note(shift, critic_steps):
    """A generator makes images for its discriminator: the noise is that of its own steps, and so are the statistics."""
    torch.manual_seed(0)
    generator = nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 4))
    optimizer = torch.optim.SGD(generator.parameters(), lr=0.01)
    with gb.watch(generator, optimizer) as watch:
        for _ in range(40):
            for _ in range(critic_steps):
                with torch.no_grad():
                    generator(torch.randn(32, 8) + shift)
            optimizer.zero_grad()
            generator(torch.randn(32, 8)).square().mean().backward()
            optimizer.step()
    (finding,) = watch.diagnosis(select="GB110").findings
    assert finding.severity == ("note" if shift == 0 else "warning")


def test_a_momentum_that_is_0_for_the_second_forward_of_a_step_is_no_mistake():
    torch.manual_seed(0)
    model = small_network()
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with gb.watch(model, optimizer, every=2) as watch:
        for x, y in digits(6):
            for momentum in (0.1, 0.0):
                for norm in norms:
                    norm.momentum = momentum
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    assert not watch.diagnosis(select="GB305").findings
    # Without the watch it is told by where the true one is kept.
    assert gb.check(model, select="GB305").findings
    for norm in norms:
        norm.backup_momentum = 0.1
    assert not gb.check(model, select="GB305").findings


@pytest.mark.parametrize(("samples", "severity"), [(8, "warning"), (32, "note")])
def test_parts_as_large_as_usual_batches_are_a_note(samples, severity):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with gb.watch(model, optimizer) as watch:
        for _ in range(8):
            for _ in range(4):
                model(torch.randn(samples, 4)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    (finding,) = watch.diagnosis(select="GB204").findings
    assert finding.severity == severity
