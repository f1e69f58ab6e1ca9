"""GB404: values that are not finite in models, on inputs, in checkpoints and while training."""

import copy

import pytest
import torch
from torch import nn

import gammabeta as gb
from gammabeta.cli.main import main
from gammabeta.diagnostics.check import diagnose
from gammabeta.diagnostics.checkpoint import record_checkpoint
from gammabeta.diagnostics.rules import not_finite


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 8), nn.LayerNorm(8), nn.ReLU(),
        nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU()), nn.Linear(8, 2),
    )  # fmt: skip


def found(model, inputs=None):
    return [(f.where, f.message) for f in gb.check(model, inputs, select="GB404").findings]


def test_one_nan_spreads_to_every_output_and_in_one_step_to_all_parameters():
    model = not_finite.flagged().model
    y = model(torch.randn(16, 4))
    assert y.isnan().all()
    y.square().mean().backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert all(p.isnan().any() for p in model.parameters())


class TestParameters:
    def test_the_parameters_are_counted_and_named_in_one_finding(self):
        model = network()
        with torch.no_grad():
            for parameter in list(model.parameters())[2:]:
                parameter.fill_(float("nan"))
        ((where, message),) = found(model)
        assert where == "1"
        assert message == "8 of 10 parameters are not finite: 1.weight, 1.bias, 3.0.weight and 5 more"

    @pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
    def test_infinity_of_either_sign_counts_in_a_parameter(self, value):
        model = network()
        model[4].bias.data[0] = float(value)
        assert found(model) == [("4", "1 of 10 parameters are not finite: 4.bias")]
        assert found(model.eval(), torch.randn(8, 4))[0][0] == "4"

    def test_a_mask_kept_as_a_parameter_that_does_not_train_is_not_found(self):
        model = network()
        model.mask = nn.Parameter(torch.full((4, 4), float("-inf")), requires_grad=False)
        assert found(model) == []
        model.mask.data[0, 0] = float("nan")
        assert found(model) == [("", "1 of 11 parameters are not finite: mask")]

    def test_running_statistics_are_left_to_their_rule(self):
        model = network()
        model[3][1].running_mean[0] = float("nan")
        x = torch.randn(8, 4)
        assert found(model.eval(), x) == []
        assert [f.code for f in gb.check(model, x, select=["GB102", "GB404"]).findings] == ["GB102"]

    def test_masks_and_observers_are_not_found(self):
        model = network()
        model.register_buffer("mask", torch.full((4, 4), float("-inf")))
        model.register_buffer("min_val", torch.tensor(float("inf")))
        assert found(model) == []

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
    def test_dtypes_of_few_bits_are_read_or_passed_over(self, dtype):
        model = network().to(torch.float16)
        model.register_buffer("scale", torch.zeros(3).to(dtype))
        assert found(model) == []


class TestOutputs:
    def test_the_first_module_is_the_innermost_whose_output_is_not_finite(self):
        model = network()

        class Broken(nn.Module):
            def forward(self, x):
                return torch.log(x - 1e6)

        model[3][2] = Broken()
        ((where, message),) = found(model.eval(), torch.randn(8, 4))
        assert where == "3.2"
        assert message == (
            "the outputs on the inputs are not finite in evaluation mode, from this module on: its inputs are finite, "
            "its outputs are not"
        )

    def test_an_operation_between_two_modules_is_named_by_them(self):
        class Logarithm(nn.Module):
            def __init__(self):
                super().__init__()
                self.norm, self.head = nn.LayerNorm(4), nn.Linear(4, 2)

            def forward(self, x):
                return self.head(torch.log(self.norm(x)))

        text = "the outputs on the inputs are not finite in evaluation mode"
        place = "an operation after norm and before head does it"
        assert found(Logarithm().eval(), torch.randn(8, 4)) == [("", f"{text}; {place}")]
        model = nn.Sequential(nn.Linear(4, 4), Logarithm()).eval()
        assert found(model, torch.randn(8, 4)) == [
            (
                "1",
                f"{text}, from this module on: its inputs are finite, its outputs are not; an operation after 1.norm "
                "and before 1.head does it",
            )
        ]
        with gb.watch(model.train(), torch.optim.SGD(model.parameters(), lr=0.1)) as watch:
            model(torch.randn(8, 4))
        assert str(watch.watched.divergence).endswith("; an operation after 1.norm and before 1.head does it")

    def test_an_overflow_in_float16_is_found_where_it_happens(self):
        model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False), nn.LayerNorm(4)).half()
        with torch.no_grad():
            model[0].weight.copy_(torch.eye(4) * 300)
            model[1].weight.copy_(torch.eye(4) * 300)
        assert [where for where, _ in found(model, torch.ones(2, 4).half())] == ["1"]

    def test_inputs_that_are_not_finite_are_said_to_be_the_cause(self):
        assert found(network().eval(), torch.full((4, 4), float("nan"))) == [
            ("", "the inputs given are not finite, and neither are the outputs")
        ]

    def test_masked_scores_of_minus_infinity_are_not_found(self):
        class Masked(nn.Module):
            def forward(self, x):
                return x.masked_fill(x < 0, float("-inf"))

        assert found(nn.Sequential(nn.LayerNorm(4), Masked()), torch.randn(8, 4)) == []

    def test_training_mode_is_looked_at_if_the_model_is_in_it(self):
        model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, eps=1e-45))
        with torch.no_grad():
            model[0].weight.zero_()
            model[0].bias.zero_()
        ((where, message),) = found(model.train(), torch.randn(8, 4)) or [("", "")]
        if where:  # a variance of 0 and an ε that underflows: NaN, unless torch treats it apart
            assert (where, "in training mode" in message) == ("1", True)


class TestCheckpoints:
    @pytest.mark.parametrize(("key", "value"), [("1.weight", "nan"), ("3.0.bias", "inf"), ("4.bias", "-inf")])
    def test_a_tensor_of_a_checkpoint_that_is_not_finite_is_an_error(self, tmp_path, key, value, monkeypatch, capsys):
        state = network().state_dict()
        state[key].flatten()[0] = float(value)
        torch.save(state, tmp_path / "last.pt")
        diagnosis = diagnose(record_checkpoint(tmp_path / "last.pt"), select="GB404")
        assert [(f.severity, f.where) for f in diagnosis.findings] == [("error", key.rpartition(".")[0])]
        assert f"tensors are not finite: {key}" in diagnosis.findings[0].message
        monkeypatch.setattr("sys.argv", ["gammabeta", "check", str(tmp_path / "last.pt")])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 1
        assert "GB404 not-finite" in capsys.readouterr().out

    def test_a_finite_checkpoint_is_not_found(self, tmp_path):
        torch.save(network().state_dict(), tmp_path / "last.pt")
        assert diagnose(record_checkpoint(tmp_path / "last.pt"), select="GB404").findings == ()


class TestWatch:
    def train(self, model, optimizer, steps=12, spoil=None, every=20):
        torch.manual_seed(1)
        with gb.watch(model, optimizer, every=every) as watch:
            for step in range(steps):
                x = torch.randn(16, 4)
                if spoil is not None:
                    x = spoil(step, x)
                optimizer.zero_grad()
                y = model(x)
                loss = y.square().mean()
                loss = self.loss(step, y) if hasattr(self, "loss") else loss
                loss.backward()
                optimizer.step()
        return watch

    def finding(self, watch):
        (finding,) = watch.diagnosis(select="GB404").findings
        return finding

    def test_a_module_that_stops_being_finite_is_named_with_its_step(self):
        model = network()

        class Overflow(nn.Module):
            calls = 0

            def forward(self, x):
                self.calls += 1
                return x * (float("inf") if self.calls == 6 else 1.0)

        model[3][2] = Overflow()
        watch = self.train(model, torch.optim.SGD(model.parameters(), lr=0.01))
        divergence = watch.watched.divergence
        # The forward is run once more to look for the module, and this one counts its calls: restored, it counts on.
        assert (divergence.step, divergence.cause) == (5, "forward")
        assert self.finding(watch).severity == "error"
        assert "step 5" in self.finding(watch).message

    def test_the_layer_where_activations_overflow_is_named(self):
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

        def spoil(step, x):
            if step == 7:
                with torch.no_grad():
                    model[4].weight.fill_(3e38)
            return x

        watch = self.train(model, optimizer, spoil=spoil)
        assert (watch.watched.divergence.step, watch.watched.divergence.where) == (7, "4")
        assert watch.watched.divergence.title == "Training diverged at step 7: an update made parameters explode in 4"
        assert self.finding(watch).where == "4"

    @pytest.mark.parametrize("bad", [4, 5])  # a step that is measured, and one that is not
    def test_a_loss_that_is_nan_is_told_from_a_forward_that_is(self, bad):
        model = network()
        self.loss = lambda step, y: y.square().mean() * (float("nan") if step == bad else 1.0)
        watch = self.train(model, torch.optim.SGD(model.parameters(), lr=0.01))
        divergence = watch.watched.divergence
        assert (divergence.step, divergence.cause, divergence.where) == (bad, "update", None)
        assert str(divergence).startswith(
            f"10 of 10 parameters were not finite after step {bad}, although its outputs were: its loss or a gradient "
            "was not"
        )

    def test_a_gradient_that_is_nan_from_one_module_back_names_it(self):
        model = network()

        class Root(nn.Module):  # √ at 0 has an infinite gradient, and 0·∞ is NaN
            calls = 0

            def forward(self, x):
                self.calls += 1
                return x + (0 * torch.sqrt((x * 0).abs()) if self.calls == 4 else 0)

        model[2] = Root()
        watch = self.train(model, torch.optim.SGD(model.parameters(), lr=0.01))
        assert watch.watched.divergence.cause == "update"
        assert watch.watched.divergence.where == "1"

    def test_a_batch_that_is_not_finite_is_said_to_be_the_cause_and_what_recovers_is_counted(self, tmp_path):
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)

        def spoil(step, x):
            return torch.full_like(x, float("nan")) if step == 3 else x

        torch.manual_seed(1)
        with gb.watch(model, optimizer) as watch:
            for step in range(8):
                model(spoil(step, torch.randn(16, 4)))
                optimizer.step()  # without gradients nothing moves
        divergence = watch.watched.divergence
        assert (divergence.step, divergence.cause) == (3, "inputs")
        assert (divergence.forwards, divergence.bad) == (5, 1)
        assert str(divergence) == (
            "at step 3 the model was given inputs that are not finite; 4 of the 4 forwards after that were finite"
        )
        (finding,) = watch.diagnosis(select="GB404").findings
        assert finding.severity == "note"  # it is over
        assert "recommendation lead-finding" not in watch.report(tmp_path / "health.html").read_text(encoding="utf-8")

    def test_parameters_are_looked_at_in_measured_steps_where_no_forward_is_seen(self):
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with gb.watch(model, optimizer, every=1) as watch:
            for step in range(6):
                optimizer.zero_grad()
                y = model[4](model[3](model[2](model[1](model[0](torch.randn(16, 4))))))
                (y.square().mean() * (float("nan") if step == 2 else 1)).backward()
                optimizer.step()
        assert (watch.watched.divergence.step, watch.watched.divergence.parameters) == (2, 10)

    def test_minus_infinity_in_a_parameter_is_seen_in_the_first_forward(self):
        model = network()

        def spoil(step, x):
            if step == 7:
                model[4].bias.data[0] = float("-inf")
            return x

        watch = self.train(model, torch.optim.SGD(model.parameters(), lr=0.01), spoil=spoil)
        divergence = watch.watched.divergence
        assert (divergence.step, divergence.parameters, divergence.where) == (6, 1, "4")

    def test_outputs_that_held_minus_infinity_are_not_said_to_have_been_finite(self):
        model = network()

        class Masked(nn.Module):
            def forward(self, x):
                return x.masked_fill(torch.tensor([True, False]), float("-inf"))

        model.append(Masked())
        self.loss = lambda step, y: y[:, 1].square().mean() * (float("nan") if step == 4 else 1.0)
        watch = self.train(model, torch.optim.SGD(model.parameters(), lr=0.01))
        divergence = watch.watched.divergence
        assert divergence.step == 4
        assert str(divergence).startswith("10 of 10 parameters were not finite after step 4: its outputs held −∞")

    def test_looking_for_the_module_leaves_no_trace(self):
        states, randoms = [], []
        for watched in (False, True):
            model = network()
            model.insert(2, nn.Dropout())
            optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
            torch.manual_seed(1)
            watch = gb.watch(model, optimizer)
            if watched:
                watch.__enter__()
            for step in range(6):
                x = torch.randn(16, 4)
                if step == 3:
                    with torch.no_grad():
                        model[5].weight.fill_(3e38)
                optimizer.zero_grad()
                model(x).square().mean().backward()
                optimizer.step()
            if watched:
                watch.__exit__()
                assert watch.watched.divergence.where == "5"
                assert watch.watched.norms["4.1"].calls == 6
                assert watch.watched.norms["4.1"].without_gradient == 0
            states.append(copy.deepcopy(model.state_dict()))
            randoms.append(torch.get_rng_state())
        assert torch.equal(*randoms)
        for key in states[0]:
            assert torch.equal(states[0][key].nan_to_num(7), states[1][key].nan_to_num(7)), key

    def test_a_healthy_training_is_not_found(self):
        model = network()
        watch = self.train(model, torch.optim.SGD(model.parameters(), lr=0.01), every=1)
        assert watch.watched.divergence is None
        assert watch.diagnosis(select="GB404").findings == ()
