"""recompute: the same gradients bit by bit, fewer bytes kept, and all ways in which a tensor may be read or changed."""

import copy
import gc
import os
import pickle
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from tests.malloc import in_use
from torch import nn
from torch.utils.checkpoint import checkpoint

import gammabeta as gb
from gammabeta.surgery.recompute import is_recomputing
from gammabeta.surgery.remaking import remaking


class Blocks(nn.Module):
    """Two residual blocks: activations as modules, as functions and in place; an identity and a projected shortcut."""

    def __init__(self, norm=nn.BatchNorm2d, channels=16):
        super().__init__()
        self.first = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        self.norms = nn.ModuleList(norm(channels) for _ in range(5))
        self.convs = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(3))
        self.project = nn.Conv2d(channels, channels, 1)
        self.act = nn.ReLU(inplace=True)
        self.last = nn.Linear(channels, 5)

    def forward(self, x):
        n = self.norms
        x = self.act(n[0](self.first(x)))
        y = n[2](self.convs[1](F.silu(n[1](self.convs[0](x)))))
        y += x
        x = F.relu(y)
        y = n[3](self.convs[2](x)) + n[4](self.project(x))
        return self.last(F.hardswish(y).mean((2, 3)))


NORMS = {
    "BatchNorm2d": nn.BatchNorm2d,
    "GroupNorm": lambda c: nn.GroupNorm(4, c),
    "InstanceNorm2d": lambda c: nn.InstanceNorm2d(c, affine=True),
    "a BatchNorm without γ and β": lambda c: nn.BatchNorm2d(c, affine=False),
}


class Rows(nn.Module):
    """A small pre-norm Transformer block."""

    def __init__(self, norm):
        super().__init__()
        self.norm1, self.norm2 = norm(32), norm(32)
        self.qkv, self.proj = nn.Linear(32, 96), nn.Linear(32, 32)
        self.up, self.down = nn.Linear(32, 64), nn.Linear(64, 32)

    def forward(self, x):
        q, k, v = self.qkv(self.norm1(x)).chunk(3, -1)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


def images(n=4, side=12, dtype=torch.float32):
    return torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(0), dtype=dtype)


def trained(model, x, *, again=False):
    """Return the gradients and buffers after one forward and backward, or a second backward."""
    model.zero_grad()
    loss = model(x).square().sum()
    loss.backward(retain_graph=again)
    if again:
        loss.backward()
    return [p.grad.clone() for p in model.parameters()] + [b.clone() for b in model.buffers()]


def equal(a, b):
    assert len(a) == len(b) > 0
    return all(torch.equal(one, other) for one, other in zip(a, b, strict=True))


def both(model):
    """Return the model, and a copy that recomputes."""
    other = copy.deepcopy(model)
    gb.recompute(other)
    return model, other


@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("ours", [False, True], ids=["torch", "adopted"])
@pytest.mark.parametrize("name", NORMS)
def test_gradients_have_the_same_bits(name, ours, train):
    torch.manual_seed(0)
    model = Blocks(NORMS[name]).train(train)
    if ours:
        gb.adopt(model)
        gb.fuse(model, images())
    one, other = both(model)
    for again in (False, True):
        assert equal(trained(one, images(), again=again), trained(other, images(), again=again))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_dtypes_and_layouts(dtype, layout):
    torch.manual_seed(0)
    model = Blocks()
    gb.adopt(model)
    one, other = both(model.to(dtype).to(memory_format=layout))
    x = images(dtype=dtype).to(memory_format=layout)
    assert equal(trained(one, x), trained(other, x))


@pytest.mark.parametrize("ours", [False, True], ids=["torch", "adopted"])
@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm])
def test_before_linear_layers(norm, ours):
    torch.manual_seed(0)
    model = Rows(norm)
    if ours:
        gb.adopt(model)
    one, other = both(model)
    x = torch.randn(8, 32, 32)
    assert equal(trained(one, x), trained(other, x))
    kept, with_it = gb.recompute(copy.deepcopy(one), x).entries[0].numbers.values()
    assert kept - with_it >= 2 * x.numel() * 4 * 0.9  # what both norms hand on


def test_autocast_casts_are_made_again_too():
    torch.manual_seed(0)
    one, other = both(Rows(nn.LayerNorm))
    x = torch.randn(8, 32, 32)

    def step(model):
        with torch.autocast("cpu", torch.bfloat16):
            return trained(model, x)

    assert equal(step(one), step(other))
    with torch.autocast("cpu", torch.bfloat16):
        kept, with_it = gb.recompute(copy.deepcopy(one), x).entries[0].numbers.values()
    assert kept - with_it >= 2 * x.numel() * 2 * 0.9


@pytest.mark.parametrize("ours", [False, True], ids=["torch", "adopted"])
def test_the_bytes_that_it_names_are_those_that_are_kept(ours):
    model = Blocks(channels=32)
    x = images(8, 48)
    if ours:
        gb.adopt(model)
        gb.fuse(model, x)
    kept = dict(gb.recompute(copy.deepcopy(model), x).entries[0].numbers)
    one, other = both(model)
    measured = []
    for m in (one, other):
        trained(m, x)
        gc.collect()
        before = in_use(large=True)
        y = m(x)
        measured.append(in_use(large=True) - before)
        y.sum().backward()
    assert measured[1] < 0.62 * measured[0]
    for bytes_in_use, named in zip(measured, kept.values(), strict=True):
        # The model's input is named too, and was there before.
        assert bytes_in_use == pytest.approx(named - x.numel() * 4, rel=0.02)


def test_derivatives_of_gradients():
    torch.manual_seed(0)
    model = Blocks(channels=4).double().eval()
    with torch.no_grad():
        for norm in model.norms:
            norm.running_var.uniform_(0.5, 2)
    gb.adopt(model)
    gb.recompute(model)
    x = images(2, 4, torch.float64).requires_grad_()
    model.act = nn.SiLU()  # smooth
    assert torch.autograd.gradgradcheck(lambda x: F.silu(model(x)), (x,), atol=1e-4)


def test_a_gradient_penalty_has_the_same_bits():
    torch.manual_seed(0)
    model = Blocks()
    gb.adopt(model)
    results = []
    for m in both(model):
        x = images().requires_grad_()
        (gradient,) = torch.autograd.grad(m(x).square().sum(), x, create_graph=True)
        gradient.square().sum().backward()
        results.append([x.grad] + [p.grad for p in m.parameters() if p.grad is not None])
    assert equal(*results)


class One(nn.Module):
    """A norm between two convolutions, which keeps its tensors where a test can change them."""

    def __init__(self, norm):
        super().__init__()
        self.before, self.norm, self.after = nn.Conv2d(3, 8, 1), norm, nn.Conv2d(8, 4, 1)
        self.seen = {}

    def forward(self, x, residual=None):
        self.seen["x"] = x = self.before(x)
        if residual is None:
            y = F.relu(self.norm(x))
        else:
            self.seen["residual"] = residual * 1
            y = self.norm(x, self.seen["residual"])
        self.seen["y"] = y
        return self.after(y)


CHANGED = {
    "x": lambda m: m.seen["x"],
    "γ": lambda m: m.norm.weight,
    "β": lambda m: m.norm.bias,
    "the next layer's weight": lambda m: m.after.weight,
    "running_mean": lambda m: m.norm.running_mean,
    "running_var": lambda m: m.norm.running_var,
    "the residual": lambda m: m.seen["residual"],
}


@pytest.mark.parametrize("ours", [False, True], ids=["torch", "adopted"])
@pytest.mark.parametrize("what", CHANGED)
def test_what_is_read_again_must_not_have_changed(what, ours):
    if what == "the residual" and not ours:
        pytest.skip("torch's norms take no residual")
    norm = gb.BatchNorm2d(8, activation="silu") if ours else nn.BatchNorm2d(8)
    model = One(norm)
    if what.startswith("running"):
        model.eval()
    gb.recompute(model)
    x = images().requires_grad_()
    y = model(x, torch.randn(4, 8, 12, 12, requires_grad=True)) if what == "the residual" else model(x)
    with torch.no_grad():
        CHANGED[what](model).add_(1)
    with pytest.raises(RuntimeError, match=r"modified by an inplace operation.* is at version"):
        y.sum().backward()


def test_two_forwards_before_a_backward():
    """Running statistics move in between, and are not read in training."""
    torch.manual_seed(0)
    model = Blocks()
    for ours in (False, True):
        if ours:
            gb.adopt(model)
        results = []
        for m in both(model):
            (m(images()).sum() + m(images() + 1).square().sum()).backward()
            results.append([p.grad.clone() for p in m.parameters()])
            m.zero_grad()
        assert equal(*results)


def test_outputs_that_are_changed_returned_or_viewed():
    class Readers(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.a, self.b = nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1)

        def forward(self, x):
            y = self.norm(x)
            z = self.a(y)
            z = z + self.a(y[:, :, ::2, ::2].contiguous()).mean()  # a copy of a view
            z = z + self.b(y.view(2, 2, 3, 12, 12)[0].repeat(1, 2, 1, 1)[:, :4]).mean()
            z = z + F.linear(y.permute(0, 2, 3, 1), torch.ones(2, 3, requires_grad=True)).mean()
            half = self.norm(x)
            half[:, 0] *= 2  # a part is written
            return z + self.a(half), y

    torch.manual_seed(0)
    results = []
    for m in both(Readers()):
        x = images().requires_grad_()
        out, y = m(x)
        (out.square().sum() + y.sum()).backward()
        results.append([x.grad, *(p.grad for p in m.parameters())])
    assert equal(*results)


def test_a_tensor_with_several_readers_is_not_overwritten():
    """The activation in place is made again from the norm's output, which the convolution reads as it was."""

    class Model(nn.Module):
        def __init__(self, in_place):
            super().__init__()
            self.norm, self.a, self.b, self.in_place = (
                nn.BatchNorm2d(3),
                nn.Conv2d(3, 4, 1),
                nn.Conv2d(3, 4, 1),
                in_place,
            )

        def forward(self, x):
            y = self.norm(x)
            z = self.a(y)
            return z + self.b(torch.relu_(y) if self.in_place else torch.relu(y))

    torch.manual_seed(0)
    expected = Model(in_place=False)
    model = copy.deepcopy(expected)
    model.in_place = True
    gb.recompute(model)
    assert equal(trained(model, images()), trained(expected, images()))


def test_a_part_that_is_written_in_place_is_kept_as_torch_keeps_it():
    norm, conv = nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.conv = norm, conv

        def forward(self, x):
            y = self.norm(x)
            torch.set_grad_enabled(True)
            with torch.no_grad():
                y[:, :1].zero_()
            return self.conv(y)

    results = []
    for m in both(Model()):
        m.zero_grad()
        m(images()).square().sum().backward()
        results.append([p.grad.clone() for p in m.conv.parameters()])
    assert equal(*results)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("where", ["around", "inside"])
def test_with_checkpointing(where, reentrant):
    class Checkpointed(Blocks):
        def forward(self, x):
            x = F.relu(self.norms[0](self.first(x)))
            x = checkpoint(lambda t: self.norms[1](self.convs[0](t)), x, use_reentrant=reentrant)
            return self.last(self.convs[1](x).mean((2, 3)))

    torch.manual_seed(0)
    model = (Checkpointed if where == "inside" else Blocks)()
    gb.adopt(model)
    results = []
    for m in both(model):
        x = images().requires_grad_()
        out = m(x) if where == "inside" else checkpoint(m, x, use_reentrant=reentrant)
        out.square().sum().backward()
        results.append([x.grad, *(p.grad for p in m.parameters() if p.grad is not None), *m.buffers()])
    assert equal(*results)


def test_nothing_is_noted_inside_of_a_checkpoint():
    norm, x = nn.BatchNorm2d(3), images().requires_grad_()
    with remaking() as mode:
        y = checkpoint(norm, x, use_reentrant=False)
        assert not mode._noted
        z = norm(x)
        assert mode._noted
    (y + z).sum().backward()


def test_a_checkpoint_around_still_keeps_nothing():
    model = Blocks(channels=32)
    x = images(8, 48).requires_grad_()
    kept = []
    for m in both(model):
        checkpoint(m, x, use_reentrant=False).sum().backward()
        gc.collect()
        before = in_use(large=True)
        y = checkpoint(m, x, use_reentrant=False)
        kept.append(in_use(large=True) - before)
        y.sum().backward()
    assert kept[1] <= kept[0] + 4096


def test_hooks_see_what_they_saw():
    torch.manual_seed(0)
    results = []
    for m in both(Blocks()):
        seen = []
        m.norms[1].register_forward_hook(lambda _m, _i, out, seen=seen: seen.append(out.detach().clone()))
        m.norms[2].register_forward_hook(lambda _m, _i, out: out * 2)
        m.norms[3].register_full_backward_hook(lambda _m, g, _o, seen=seen: seen.append(g[0].clone()))
        results.append([*trained(m, images()), *seen])
    assert equal(*results)


def test_copies_pickles_and_undoing():
    model = Blocks()
    before = type(model)
    change = gb.recompute(model)
    assert isinstance(model, Blocks)
    assert str(change).startswith("recompute: 1 changed")
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert is_recomputing(other)
        assert equal(trained(other, images()), trained(copy.deepcopy(model), images()))
    assert list(model.state_dict()) == list(Blocks().state_dict())
    assert gb.recompute(model).left == {"": "it recomputes already"}
    change.undo()
    assert type(model) is before


def test_in_a_part_of_a_model():
    torch.manual_seed(0)
    model = nn.Sequential(Blocks(), nn.Linear(5, 5))
    other = copy.deepcopy(model)
    gb.recompute(other[0])
    assert equal(trained(model, images()), trained(other, images()))
    gb.recompute(other)  # around a part that recomputes already
    assert equal(trained(model, images()), trained(other, images()))


def test_while_something_else_decides():
    model = Blocks().eval()
    gb.recompute(model)
    x = images()
    plain = copy.deepcopy(model)
    plain.__class__ = Blocks
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def of(m):
        return torch.func.grad(lambda p: torch.func.functional_call(m, p, (x,)).sum())(parameters)

    assert equal(list(of(model).values()), list(of(plain).values()))
    with torch.autograd.graph.disable_saved_tensors_hooks("none here"):
        model(x).sum().backward()
    with torch.autograd.graph.save_on_cpu():
        model(x).sum().backward()
    with torch.no_grad():
        model(x)
    program = torch.export.export(copy.deepcopy(model), (x,))
    torch.testing.assert_close(program.module()(x), plain(x))


def test_tensors_without_a_version():
    """Those of inference mode have none. A model may add them; autograd saves none."""
    with torch.inference_mode():
        shift = torch.randn(4, 3, 12, 12)

    class Shifted(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.conv = nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1)

        def forward(self, x):
            return self.conv(torch.relu(self.norm(x) + shift))

    torch.manual_seed(0)
    one, other = both(Shifted())
    assert equal(trained(one, images()), trained(other, images()))


def test_a_compiled_model_is_left_to_the_partitioner():
    torch.manual_seed(0)
    one, other = both(Blocks())
    compiled = torch.compile(other, fullgraph=True, backend="aot_eager")
    with pytest.warns(UserWarning, match=r"recompute: under torch.compile it does nothing"):
        y = compiled(images())
    y.square().sum().backward()
    one(images()).square().sum().backward()
    for p, q in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-3, atol=1e-4)
    with pytest.raises(TypeError, match=r"runs eagerly, got one that torch.compile made"):
        gb.recompute(compiled)


def test_a_part_that_is_compiled_stays_compiled():
    torch._dynamo.reset()
    graphs = []

    def backend(graph, _inputs):
        graphs.append(graph)
        return graph.forward

    model = Blocks()
    model.project = torch.compile(model.project, backend=backend)
    gb.recompute(model)
    model(images()).sum().backward()
    assert len(graphs) == 1


def test_refusals():
    with pytest.raises(ValueError, match="expected a model with norms, got Linear without any"):
        gb.recompute(nn.Linear(2, 2))
    with pytest.raises(TypeError, match="expected a model in Python, got a scripted one"):
        gb.recompute(torch.jit.script(nn.Sequential(nn.BatchNorm1d(2))))
    model = Blocks()
    with pytest.raises(RuntimeError, match="size"):
        gb.recompute(model, torch.randn(2, 3))
    assert type(model) is Blocks


WITHIN_A_LIMIT = """
import resource, sys, torch
from torch import nn
import gammabeta as gb

torch.set_num_threads(1)
block = lambda: nn.Sequential(nn.Conv2d(16, 16, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
model = nn.Sequential(*(block() for _ in range(16)))
if sys.argv[1] == "recompute":
    gb.recompute(model)
model(torch.randn(2, 16, 8, 8)).sum().backward()  # what a first step allocates once
one = 16 * 16 * 128 * 128 * 4  # bytes of an activation
page = resource.getpagesize()
used = int(open("/proc/self/statm").read().split()[0]) * page
resource.setrlimit(resource.RLIMIT_AS, (used + 28 * one, resource.RLIM_INFINITY))
model(torch.randn(16, 16, 128, 128)).sum().backward()
print("fits")
"""


@pytest.mark.parametrize(("how", "fits"), [("recompute", True), ("plain", False)])
def test_a_batch_fits_that_did_not(how, fits, tmp_path):
    """16 blocks keep 32 activations, or 16. Input, gradients and temporary copies take some six more."""
    if sys.platform != "linux":
        pytest.skip("the limit of memory is Linux's")
    script = tmp_path / "within_a_limit.py"
    script.write_text(WITHIN_A_LIMIT)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "MALLOC_MMAP_THRESHOLD_": "1000000",
    }
    ran = subprocess.run([sys.executable, script, how], capture_output=True, text=True, env=environment, check=False)
    assert (ran.stdout.strip() == "fits") is fits, ran.stderr
    if not fits:
        assert "allocate" in ran.stderr
