"""Public docstrings say what a caller needs: shapes, units, divisors, errors, sources.

What is asked of which object:

| rule | asked of | what it says |
|---|---|---|
| sentence | everything | the docstring begins with a sentence; a function's with a verb in the imperative |
| parameters | functions, constructors | Args (of a dataclass also Attributes) names every parameter |
| call | layers | how `forward` is called |
| shapes | every parameter, attribute and result that is a tensor | its shape, as (N, C), or whose shape it shares |
| units | every parameter that is a float | its unit, or that it has none: a share, a slope, a ratio |
| returns | functions and methods that return something | Returns, or a first verb "Return" or "Yield" |
| raises | functions and constructors that raise or check an argument | Raises, with exceptions that exist |
| divisor | everything that speaks of σ² or of a variance | what the variance is divided by |
| source | everything that states a formula of statistics | the paper or definition, under Source |

`EXEMPT` has the exceptions, each with its reason.
"""

import ast
import builtins
import importlib.util
import inspect
import re
import textwrap
from pathlib import Path

import pytest

import gammabeta as gb
from gammabeta.activations import ACTIVATIONS

ROOT = Path(__file__).parents[1]
FUNCTIONS = (
    "add_layer_norm", "add_rms_norm", "batch_norm", "group_norm", "instance_norm", "layer_norm", "rms_norm",
)  # fmt: skip
PUBLIC = {
    **{name: getattr(gb, name) for name in gb.__all__ if not inspect.ismodule(getattr(gb, name))},
    **{f"functional.{name}": getattr(gb.functional, name) for name in FUNCTIONS},
    **{f"statistics.{name}": getattr(gb.statistics, name) for name in gb.statistics.__all__},
}
MEMBERS = {
    f"{name}.{key}": value
    for name, owner in PUBLIC.items()
    if inspect.isclass(owner)
    for key, value in vars(owner).items()
    if not key.startswith("_")
}
PROPERTIES = {name: value for name, value in MEMBERS.items() if isinstance(value, property)}
# A source's `normalize` is documented once, in the protocol; a layer's `forward` in its class, which a test asks for.
DOCUMENTED_ELSEWHERE = re.compile(r"statistics\.(?!Statistics)\w+\.normalize|\w+Norm\w*\.forward")
METHODS = {
    name: inspect.unwrap(getattr(value, "__func__", value))
    for name, value in MEMBERS.items()
    if inspect.isroutine(value) and not DOCUMENTED_ELSEWHERE.fullmatch(name)
}
CALLABLES = {**PUBLIC, **METHODS}
OBJECTS = {**CALLABLES, **PROPERTIES}
LAYERS = {name: value for name, value in PUBLIC.items() if "Norm" in name and inspect.isclass(value)}

# gammabeta makes these; their docstrings have Attributes.
NOT_CONSTRUCTED = (gb.Change, gb.statistics.Statistics)

EXEMPT: dict[tuple[str, str], str] = {
    ("statistics.Statistics", "divisor"): "the protocol computes nothing; each source says what it divides by",
    ("parameter_groups", "divisor"): "it names the buffer, and computes nothing",
}

SECTION = re.compile(r"^(Args|Attributes|Returns|Yields|Raises|Source|Example|Examples):", re.MULTILINE)
SHAPE = re.compile(
    r"\((\*?[A-Za-z0-9_]+,)[^()]*\)|'s shape|shape of|of normalized_shape|any shape|broadcastable to"
    r"|see the module|those of `"
)
UNIT = re.compile(
    r"unit|dimensionless|share|weight of|slope|ratio|relative|standard deviations|standard errors|seconds|0 to 1|factor"
    r"|see the module|those of `"
)
DIVISOR = re.compile(r"divided by|n − 1|correction|m2/|/ ?n\b")
FORMULA = re.compile(r"(?:^|\s)[a-zA-Zμσ²ŷŝ]\S* = .*[/√Σ·]")


def document(target):
    return inspect.getdoc(target) or ""


def sections(text):
    """Return the docstring's text by section, that before the first one under ""."""
    parts = SECTION.split(text)
    return {"": parts[0], **dict(zip(parts[1::2], parts[2::2], strict=True))}


def entries(text):
    """Return the entries of an Args or Attributes section, by name."""
    found = {}
    for names, body in re.findall(r"^ {4}(\S[^:\n]*):((?: .*)?(?:\n(?: {5,}.*|$))*)", text, re.MULTILINE):
        for name in names.split(","):
            found[name.strip().lstrip("*")] = body
    return found


def parameters(target):
    """Return the parameters of a function or of a class's constructor."""
    if target in NOT_CONSTRUCTED:
        return {}
    signature = inspect.signature(target)
    return {
        name: str(parameter.annotation)
        for name, parameter in signature.parameters.items()
        if name not in ("self", "cls") and not name.startswith("_")
    }


def excused(name, rule):
    if (name, rule) in EXEMPT:
        pytest.skip(EXEMPT[name, rule])


def each(objects):
    return pytest.mark.parametrize(("name", "target"), objects.items(), ids=list(objects))


@each(OBJECTS)
def test_a_docstring_begins_with_a_sentence(name, target):
    excused(name, "sentence")
    text = document(target)
    assert text, f"{name} has no docstring"
    first = text.partition("\n\n")[0]
    assert first.endswith((".", ":")), first
    if inspect.isroutine(target):
        word = first.split()[0]
        assert re.fullmatch(r"[A-Z][a-z-]+,?", word), f"{name}: expected a verb first, got {first}"
        assert word not in ("The", "A", "An", "What", "How", "Whether", "No", "With", "One", "Each", "Every"), first
        assert word == "Pass" or not word.endswith("s"), f"{name}: expected the imperative, got {word}"


@each(PUBLIC)
def test_every_parameter_is_documented(name, target):
    excused(name, "parameters")
    parts = sections(document(target))
    documented = {**entries(parts.get("Args", "")), **entries(parts.get("Attributes", ""))}
    missing = [parameter for parameter in parameters(target) if parameter not in documented]
    assert not missing, f"{name}: nothing under Args on {missing}"


@each(LAYERS)
def test_a_layer_says_how_it_is_called(name, target):
    assert "`forward(x, residual=None, mask=None)`" in document(target)


@each(CALLABLES)
def test_tensors_have_shapes(name, target):
    excused(name, "shapes")
    parts = sections(document(target))
    documented = {**entries(parts.get("Args", "")), **entries(parts.get("Attributes", ""))}
    for parameter, annotation in parameters(target).items():
        if "Tensor" in annotation and parameter in documented:
            assert SHAPE.search(documented[parameter]), f"{name}: no shape of {parameter}: {documented[parameter]}"
    returned = "" if inspect.isclass(target) else str(inspect.signature(target).return_annotation)
    if "Tensor" in returned:
        text = parts.get("Returns") or document(target)
        assert SHAPE.search(text), f"{name}: no shape of what it returns: {text}"


@each(PUBLIC)
def test_floats_have_units(name, target):
    excused(name, "units")
    parts = sections(document(target))
    documented = {**entries(parts.get("Args", "")), **entries(parts.get("Attributes", ""))}
    for parameter, annotation in parameters(target).items():
        if re.search(r"\bfloat\b", annotation) and parameter in documented:
            assert UNIT.search(documented[parameter]), f"{name}: no unit of {parameter}: {documented[parameter]}"


@each(CALLABLES)
def test_results_are_documented(name, target):
    excused(name, "returns")
    if inspect.isclass(target) or str(inspect.signature(target).return_annotation) in ("None", "Iterator[None]"):
        return
    text = document(target)
    assert {"Returns", "Yields"} & set(sections(text)) or text.startswith(("Return", "Yield")), f"{name}: no Returns"


def raises(target):
    """Return whether a function or a class's constructor raises, or calls what checks an argument."""
    if target in NOT_CONSTRUCTED:
        return False
    if inspect.isclass(target):
        makers = [vars(target).get(name) for name in ("__init__", "__post_init__")]
        # A dataclass's own __init__ was never written down.
        written = [maker for maker in makers if inspect.isfunction(maker) and maker.__code__.co_filename != "<string>"]
        return any(map(raises, written))
    tree = ast.parse(textwrap.dedent(inspect.getsource(target)))
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and node.exc is not None:
            return True
        if isinstance(node, ast.Call):
            called = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if re.match(r"_?check_|select$|_?refuse", called):
                return True
    return False


@each(CALLABLES)
def test_errors_are_documented(name, target):
    excused(name, "raises")
    parts = sections(document(target))
    if raises(target):
        assert "Raises" in parts, f"{name} raises, and its docstring does not say what"
    for names in re.findall(r"^ {4}([A-Z][A-Za-z, ]+):", parts.get("Raises", ""), re.MULTILINE):
        for error in names.split(","):
            known = {**vars(builtins), **vars(inspect.getmodule(target))}
            found = known.get(error.strip())
            assert isinstance(found, type), f"{name}: Raises names {error.strip()}, which neither Python nor it has"
            assert issubclass(found, BaseException)


@each(OBJECTS)
def test_a_variance_has_its_divisor(name, target):
    excused(name, "divisor")
    text = document(target)
    if re.search(r"σ²|σ_|[Vv]ariance", text):
        assert DIVISOR.search(text), f"{name} speaks of a variance and not of its divisor"


@each(PUBLIC)
def test_a_formula_has_its_source(name, target):
    excused(name, "source")
    text = document(target)
    if FORMULA.search(sections(text)[""]):
        assert "Source" in sections(text) or re.search(r"[12][90]\d\d \(\d{4}\.\d{4,5}\)", text), name


def test_functional_lists_the_activations():
    listed = re.search(r"activation +None, (.*?);", document(gb.functional), re.DOTALL)[1]
    assert re.findall(r'"(\w+)"', listed) == list(ACTIVATIONS[1:])


@pytest.mark.parametrize("exemption", EXEMPT)
def test_an_exemption_is_about_something_that_is_there(exemption):
    assert exemption[0] in OBJECTS


def test_every_source_file_says_what_it_holds():
    spec = importlib.util.spec_from_file_location("files", ROOT / "docs" / "files.py")
    files = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(files)
    silent = [
        str(path.relative_to(files.SOURCE))
        for path in files.SOURCE.rglob("*")
        if path.suffix in (".py", *files.COMMENTED) and path.stat().st_size and not files.summary(path)
    ]
    assert not silent, f"no docstring or comment at the top: {silent}"
