"""`watch`: what it records, what it costs in memory, and that it leaves no trace."""

import copy
import gc
import io
import re

import pytest
import torch
from tests.chromium import chromium, needs_chromium
from torch import nn
from torch.utils.checkpoint import checkpoint

import gammabeta as gb
from gammabeta.monitoring.curves import number
from gammabeta.monitoring.watched import MOST, History


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3), nn.LayerNorm(3))


def train(model, optimizer, steps, call=None):
    for _ in range(steps):
        optimizer.zero_grad()
        (call or model)(torch.randn(16, 4)).square().mean().backward()
        optimizer.step()


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.01)


def test_training_is_bit_for_bit_what_it_is_without_and_no_hook_stays():
    plain, watched = network(), network()
    for model in (plain, watched):
        torch.manual_seed(1)
        if model is plain:
            train(model, sgd(model), 12)
        else:
            optimizer = sgd(model)
            with gb.watch(model, optimizer, every=3):
                train(model, optimizer, 12)
            assert not optimizer._optimizer_step_post_hooks
    for key, value in plain.state_dict().items():
        assert torch.equal(value, watched.state_dict()[key]), key
    for module in watched.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    assert not any(p._post_accumulate_grad_hooks for p in watched.parameters())


def test_numbers_are_those_of_the_step_and_go_to_the_log():
    model, told = network(), {}
    optimizer = sgd(model)
    with gb.watch(model, optimizer, log=lambda name, value, step: told.__setitem__((name, step), value), every=4):
        x = torch.randn(16, 4) * 3 + 1
        h = model[0](x).detach()
        model(x).square().mean().backward()
        gradient = model[1].weight.grad.norm().item()
        optimizer.step()
    assert told["1/weight_grad", 0] == pytest.approx(gradient, rel=1e-6)  # the same float32 norm, computed twice
    assert told["1/updates", 0] == 1
    mean, var = 0.1 * h.mean(0), 0.9 + 0.1 * h.var(0)
    gap = ((h.mean(0) - mean) ** 2 / (var + 1e-5) + (0.5 * ((h.var(0, False) + 1e-5) / (var + 1e-5)).log()) ** 2).mean()
    assert told["1/gap", 0] == pytest.approx(gap.sqrt().item(), rel=1e-4)  # float32 moments in another order
    assert told["1/mean", 0] == pytest.approx(mean.square().mean().sqrt().item(), rel=1e-5)
    assert ("4/weight_grad", 0) in told


def test_tensorboard_takes_the_numbers(tmp_path):
    tensorboard = pytest.importorskip("torch.utils.tensorboard")
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    model = network()
    optimizer = sgd(model)
    with tensorboard.SummaryWriter(str(tmp_path)) as writer, gb.watch(model, optimizer, log=writer.add_scalar, every=5):
        train(model, optimizer, 11)
    events = accumulator.EventAccumulator(str(tmp_path)).Reload()
    assert [event.step for event in events.Scalars("1/drift")] == [1, 2, 4, 5, 10]


def test_the_record_has_a_bound_over_a_million_steps():
    history = History()
    for step in range(1_000_000):
        history.add(step, {"a": float(step)})
        assert len(history.steps) < MOST + 1
    assert history.steps == [int(value) for value in history.columns["a"]]
    assert history.steps[0] == 0
    assert history.steps[-1] > 980_000
    assert len({b - a for a, b in zip(history.steps, history.steps[1:], strict=False)}) == 1


def test_tensors_do_not_gather_over_many_steps():
    model = network()
    optimizer = sgd(model)
    with gb.watch(model, optimizer, every=1):
        counts = []
        for _ in range(4):
            train(model, optimizer, 300)
            gc.collect()
            counts.append(sum(isinstance(thing, torch.Tensor) for thing in gc.get_objects()))
    # One per step would be 600 more; objects of other tests may come and go.
    assert counts[-1] - counts[1] < 20


def test_a_copy_or_a_pickle_made_while_watching_is_not_watched():
    model = network()
    optimizer = sgd(model)
    with gb.watch(model, optimizer) as watch:
        twin = copy.deepcopy(model)
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        for other in (twin, torch.load(file, weights_only=False)):
            other(torch.randn(16, 4)).sum().backward()
        assert watch.watched.norms["1"].calls == 0


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_is_counted_as_recomputation_and_not_as_pollution(reentrant):
    model = network()
    optimizer = sgd(model)
    with gb.watch(model, optimizer) as watch:
        for _ in range(5):
            optimizer.zero_grad()
            x = torch.randn(16, 4, requires_grad=True)
            checkpoint(model, x, use_reentrant=reentrant).square().mean().backward()
            optimizer.step()
    record = watch.watched.norms["1"]
    assert record.recomputed == record.moved_again == 5
    assert record.polluting == 0


def test_a_model_compiled_before_is_watched_by_its_buffers_and_said_so():
    model = network()
    optimizer = sgd(model)
    compiled = torch.compile(model, backend="aot_eager")
    train(model, optimizer, 2, compiled)
    with gb.watch(compiled, optimizer, every=1) as watch:
        train(model, optimizer, 4, compiled)
    assert watch.watched.norms["1"].history.known("updates") == [1, 1, 1, 1]
    assert watch.watched.unseen == ("1",)


def test_without_an_optimizer_each_forward_in_training_is_a_step():
    model = network()
    with gb.watch(model) as watch:
        for _ in range(5):
            model(torch.randn(8, 4)).sum().backward()
        model.eval()(torch.randn(8, 4))
    assert watch.watched.steps == 4  # the last step ends with the next forward


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ((3,), TypeError, "watch: expected model as a torch.nn.Module, got a int."),
        (
            (nn.ReLU(), 3),
            TypeError,
            "watch: expected optimizer as a torch.optim.Optimizer or a list of them, got a int.",
        ),
    ],
)
def test_what_is_not_a_model_or_an_optimizer_is_refused(arguments, error, text):
    with pytest.raises(error) as raised:
        gb.watch(*arguments)
    assert str(raised.value) == text


@pytest.mark.parametrize("every", [0, 1.5, True])
def test_an_interval_that_is_none_is_refused(every):
    with pytest.raises(ValueError, match="expected every as a number of steps, 1 or more, got"):
        gb.watch(nn.ReLU(), every=every)


@needs_chromium
def test_the_health_report_opens_in_a_browser_without_an_error_or_a_request(tmp_path):
    model = network()
    optimizer = sgd(model)
    with gb.watch(model, optimizer, every=2) as watch:
        for _ in range(10):
            with torch.no_grad():
                model(torch.randn(16, 4))
            train(model, optimizer, 1)
    address = watch.report(tmp_path / "health.html").as_uri()
    wrong = []
    with chromium() as browser:
        page = browser.new_page()
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda request: request.url == address or wrong.append(request.url))
        page.goto(address)
        assert "GB110 statistics-polluted" in page.inner_text("main")
        assert page.locator("svg.curve polyline").count() > 10
    assert wrong == []


class TestHealthPage:
    """The page as text: what it leads with, what is grouped, and the axes."""

    def page(self, tmp_path, *, diverge=False, steps=30):
        model = nn.Sequential(
            *[m for _ in range(6) for m in (nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU())], nn.Linear(8, 3)
        )
        optimizer = sgd(model)
        with gb.watch(model, optimizer, every=2) as watch:
            with torch.no_grad():
                for _ in range(steps):
                    model(torch.randn(16, 8))
            for step in range(steps):
                if diverge and step == 17:
                    with torch.no_grad():
                        model[9].weight.fill_(3e38)
                train_on = torch.randn(16, 8)
                optimizer.zero_grad()
                model(train_on).square().mean().backward()
                optimizer.step()
        return watch.report(tmp_path / "health.html").read_text(encoding="utf-8")

    def test_it_has_the_model_the_date_and_the_versions(self, tmp_path):
        page = self.page(tmp_path)
        assert "<span>model</span> Sequential" in page
        assert f"gammabeta {gb.__version__}, torch {torch.__version__}" in page
        assert re.search(r"<span>written</span> \d{4}-\d\d-\d\d \d\d:\d\d [+-]\d{4}", page)

    def test_a_rule_is_there_once_with_its_text_and_one_fix(self, tmp_path):
        page = self.page(tmp_path)
        assert page.count("GB110 statistics-polluted") == 1
        assert page.count("warning, 6 modules") == 1
        assert page.count("Running statistics moved by forwards that the model does not learn from.") == 1
        assert "<code>1</code>, <code>4</code>, <code>7</code> and 3 others: 30 forwards in training mode" in page
        assert page.count("<b>Fix</b>") == 1
        assert "Why it matters, and when GB110 is wrong" in page
        assert "diverged" not in page.partition("</style>")[2]

    def test_a_training_that_diverged_leads(self, tmp_path):
        page = self.page(tmp_path, diverge=True).partition("</style>")[2]
        assert '<p class="headline">Training diverged at step 17: an update made parameters explode in 9</p>' in page
        assert page.index("Training diverged") < page.index("Also found") < page.index("GB102")
        assert "<title>Training diverged at step 17" in self.page(tmp_path, diverge=True)
        assert page.count("recalibrate(") == 0, "nothing is to be recalibrated where the parameters are NaN"
        assert page.count('class="diverged"') > 6

    def test_curves_have_axes_with_values_and_steps(self, tmp_path):
        page = self.page(tmp_path)
        (svg,) = re.findall(r"<svg class=\"curve\".*?</svg>", page)[:1]
        texts = re.findall(r"<text[^>]*>([^<]*)</text>", svg)
        assert texts[2:] == ["0", "28"]
        assert len(texts) == 4
        assert float(texts[0]) > float(texts[1])

    def test_numbers_are_short(self):
        assert [number(v) for v in (0.02171, 4264.0, 1.234e8, 999999.0, 5.0, 1e-7)] == [
            "0.0217", "4260", "1.23e8", "1000000", "5", "1e-7",
        ]  # fmt: skip


def test_evaluation_mode_in_a_compiled_training_is_found():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    compiled = torch.compile(model, backend="eager")
    with gb.watch(model, optimizer) as watch:
        for step in range(20):
            if step == 7:
                model.eval()
            optimizer.zero_grad()
            compiled(torch.randn(16, 4)).square().mean().backward()
            optimizer.step()
    assert [finding.code for finding in watch.diagnosis(select="GB114").findings] == ["GB114"]
    assert watch.watched.training_steps == 7


class Perturbing(torch.optim.Optimizer):
    """Sharpness-aware minimization as it is usually written: around another optimizer, whose steps update."""

    def __init__(self, params, base, **settings):
        super().__init__(params, settings)
        self.base_optimizer = base(self.param_groups, **settings)
        self.param_groups = self.base_optimizer.param_groups

    def second_step(self):
        self.base_optimizer.step()
        self.zero_grad()

    def step(self, closure=None):
        raise NotImplementedError


def test_the_steps_of_an_optimizer_inside_another_are_counted():
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    optimizer = Perturbing(model.parameters(), torch.optim.SGD, lr=0.1)
    with gb.watch(model, optimizer) as watch:
        for _ in range(5):
            model(torch.randn(16, 4)).square().mean().backward()
            optimizer.second_step()
    assert watch.watched.steps == 5
    assert watch.watched.norms["1"].history.known("updates")
