"""frozen_statistics and accumulate_statistics: when running statistics move within a context."""

import copy
import math
import re

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import gammabeta as gb
from gammabeta.statistics import Batch, Ghost, Renorm, Running


def network(momentum=0.1, source=None, dtype=torch.float64):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv1d(3, 4, 3, padding=1),
        gb.BatchNorm1d(4, momentum=momentum, statistics=source, activation="relu"),
        nn.Flatten(),
        nn.Linear(4 * 5, 6),
        gb.BatchNorm1d(6, momentum=momentum, statistics=source),
    ).to(dtype)
    with torch.no_grad():
        for norm in (net[1], net[4]):
            norm.weight.normal_()
            norm.bias.normal_()
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
    return net


X = torch.randn(12, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) + 2


def state(model):
    return {name: value.clone() for name, value in model.named_buffers()}


def assert_same_bits(model, before):
    now = dict(model.named_buffers())
    assert now.keys() == before.keys()
    for name, value in before.items():
        assert torch.equal(now[name], value), name


class TestFrozenStatistics:
    @pytest.mark.parametrize("source", [Batch(), Ghost(5), Renorm(), Running()])
    def test_nothing_moves_inside_and_all_goes_on_outside(self, source):
        net, plain = network(source=source), network(source=source)
        before = state(net)
        with gb.frozen_statistics(net):
            assert torch.equal(net(X), plain(X))
            assert_same_bits(net, before)
        net(X)
        if source == Running():
            assert_same_bits(net, before)
        else:
            assert net[1].num_batches_tracked == 1
            assert not torch.equal(net[4].running_var, before["4.running_var"])

    def test_gradients_flow_as_ever(self):
        net, plain = network(), network()
        with gb.frozen_statistics(net):
            net(X).square().sum().backward()
        plain(X).square().sum().backward()
        assert torch.equal(net[0].weight.grad, plain[0].weight.grad)

    def test_torch_s_own_norms_and_instance_norm_are_held_too(self):
        net = nn.Sequential(
            nn.BatchNorm1d(3, momentum=None),
            nn.InstanceNorm1d(3, track_running_stats=True),
            gb.InstanceNorm1d(3, track_running_stats=True),
            nn.SyncBatchNorm(3),
        )[:3].double()
        net(X)
        before = state(net)
        with gb.frozen_statistics(net):
            net(X * 3 + 1)
            net(torch.full_like(X, math.nan))
        assert_same_bits(net, before)
        assert net[0].track_running_stats
        net(X * 3 + 1)
        for norm in net:
            assert not torch.equal(norm.running_mean, before[f"{list(net).index(norm)}.running_mean"])

    def test_it_ends_with_an_exception_and_nests(self):
        net = network()

        def work():
            with gb.frozen_statistics(net[4]):
                net(X)
            net(X)
            assert net[4].num_batches_tracked == 0
            return 1 / 0

        with pytest.raises(ZeroDivisionError), gb.frozen_statistics(net):
            work()
        net(X)
        assert net[1].num_batches_tracked == net[4].num_batches_tracked == 1

    def test_a_copy_made_inside_is_not_held(self):
        net = network()
        with gb.frozen_statistics(net):
            other = copy.deepcopy(net)
        other(X)
        assert other[1].num_batches_tracked == 1
        assert net[1].num_batches_tracked == 0


class TestAccumulateStatistics:
    @pytest.mark.parametrize("momentum", [0.1, 1.0, None])
    @pytest.mark.parametrize("sizes", [[4, 4, 4], [2, 7, 3], [12]])
    def test_one_update_by_the_moments_of_all_micro_batches(self, momentum, sizes):
        """The first norm sees the same values with its batch split or whole: the conv before it acts on each sample."""
        net, whole = network(momentum), network(momentum)
        for _ in range(2):
            before = state(net)
            with gb.accumulate_statistics(net):
                for part in X.split(sizes):
                    net(part)
                    assert_same_bits(net, before)
            whole(X)
        assert net[1].num_batches_tracked == net[4].num_batches_tracked == 2
        # Merging rounds by a few units in the last place.
        torch.testing.assert_close(net[1].running_mean, whole[1].running_mean, rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(net[1].running_var, whole[1].running_var, rtol=1e-12, atol=1e-13)

    @pytest.mark.parametrize("source", [Ghost(2), Renorm(2.0, 1.0)])
    @pytest.mark.parametrize("masked", [False, True])
    def test_under_every_source_and_a_mask(self, source, masked):
        norm, whole = (gb.BatchNorm1d(3, statistics=s).double() for s in (source, Batch()))
        mask = torch.rand(12, 5, generator=torch.Generator().manual_seed(3)) > 0.4 if masked else None
        with gb.accumulate_statistics(norm):
            for part in (slice(0, 7), slice(7, 12)):
                norm(X[part], mask=None if mask is None else mask[part])
        whole(X, mask=mask)
        torch.testing.assert_close(norm.running_mean, whole.running_mean, rtol=1e-12, atol=0)
        torch.testing.assert_close(norm.running_var, whole.running_var, rtol=1e-12, atol=0)

    @pytest.mark.parametrize("momentum", [0.1, None])
    def test_a_micro_batch_that_is_not_finite_spoils_nothing(self, momentum):
        norm, rest = gb.BatchNorm1d(3, momentum=momentum).double(), gb.BatchNorm1d(3, momentum=momentum).double()
        spoilt = X.clone()
        spoilt[5, 1, 2] = math.nan
        with gb.accumulate_statistics(norm):
            for part in spoilt.split(4):
                norm(part)
        rest(X[[0, 1, 2, 3, 8, 9, 10, 11]])
        assert norm.skipped_updates.tolist() == [0, 0, 0]
        torch.testing.assert_close(norm.running_var[1], rest.running_var[1], rtol=1e-12, atol=0)
        whole = gb.BatchNorm1d(3, momentum=momentum).double()
        whole(X)
        torch.testing.assert_close(norm.running_var[[0, 2]], whole.running_var[[0, 2]], rtol=1e-12, atol=0)

    def test_a_channel_that_is_never_finite_is_skipped_and_counted(self):
        norm = gb.BatchNorm1d(3, momentum=None).double()
        spoilt = X.clone()
        spoilt[:, 1] = math.inf
        with gb.accumulate_statistics(norm):
            for part in spoilt.split(4):
                norm(part)
        assert norm.skipped_updates.tolist() == [0, 1, 0]
        assert (norm.running_mean[1], norm.running_var[1]) == (0, 1)
        norm(X)
        torch.testing.assert_close(norm.running_mean[1], X[:, 1].mean(), rtol=1e-12, atol=0)

    def test_an_exception_inside_discards(self):
        net = network()
        before = state(net)
        with pytest.raises(ZeroDivisionError), gb.accumulate_statistics(net):
            _ = net(X), 1 / 0
        assert_same_bits(net, before)
        net(X)
        assert net[1].num_batches_tracked == 1

    def test_without_a_forward_nothing_counts(self):
        net = network()
        before = state(net)
        with gb.accumulate_statistics(net):
            net.eval()(X)
            with gb.frozen_statistics(net):
                net.train()(X)
        assert_same_bits(net, before)

    @pytest.mark.parametrize("reentrant", [True, False])
    def test_a_recomputation_counts_once(self, reentrant):
        net, plain = network(), network()
        with gb.accumulate_statistics(net):
            for part in X.split(6):
                checkpoint(net, part.requires_grad_(), use_reentrant=reentrant).sum().backward()
        with gb.accumulate_statistics(plain):
            for part in X.split(6):
                plain(part)
        assert_same_bits(net, state(plain))

    def test_a_step_that_the_scaler_skips_still_counts(self):
        norm = gb.BatchNorm1d(3)
        optimizer = torch.optim.SGD(norm.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        with gb.accumulate_statistics(norm):
            for part in X.float().split(6):
                scaler.scale(norm(part).sum() * math.inf).backward()
        weight = norm.weight.clone()
        scaler.step(optimizer)
        scaler.update()
        assert torch.equal(norm.weight, weight)
        assert scaler.get_scale() < 2.0**10
        assert norm.num_batches_tracked == 1
        torch.testing.assert_close(norm.running_mean, 0.1 * X.float().mean((0, 2)))

    def test_in_one_another_the_outer_one_updates(self):
        norm, whole = gb.BatchNorm1d(3).double(), gb.BatchNorm1d(3).double()
        with gb.accumulate_statistics(norm):
            norm(X[:3])
            with gb.accumulate_statistics(norm):
                norm(X[3:8])
                norm(X[8:])
            assert norm.num_batches_tracked == 0
        whole(X)
        assert norm.num_batches_tracked == 1
        torch.testing.assert_close(norm.running_var, whole.running_var, rtol=1e-12, atol=0)

    @pytest.mark.parametrize("momentum", [0.1, None])
    def test_compiled_it_gathers_and_holds_without_compiling_each_forward(self, momentum):
        torch._dynamo.reset()
        net, eager = network(momentum), network(momentum)
        graphs = []

        def backend(graph, inputs):
            graphs.append(graph)
            return graph.forward

        compiled = torch.compile(net, backend=backend, fullgraph=True)
        for model, call in ((net, compiled), (eager, eager)):
            for _ in range(3):
                with gb.accumulate_statistics(model):
                    for part in X.split(4):
                        call(part)
            with gb.frozen_statistics(model):
                call(X[:4])
            call(X[:4])
        for name, value in eager.named_buffers():
            torch.testing.assert_close(dict(net.named_buffers())[name], value, rtol=1e-12, atol=1e-13)
        assert len(graphs) == 3  # gathering, held, neither

    def test_a_norm_that_is_not_ours_is_refused(self):
        net = nn.Sequential(gb.BatchNorm1d(3), nn.Sequential(nn.BatchNorm1d(3)))
        text = (
            "accumulate_statistics: expected BatchNorms of gammabeta, got 1.0 (BatchNorm1d), whose running statistics "
            "would move at every forward: gammabeta.adopt(model) first."
        )
        with pytest.raises(ValueError, match=f"^{re.escape(text)}$"), gb.accumulate_statistics(net):
            pass
        assert net[0].gathered is None
