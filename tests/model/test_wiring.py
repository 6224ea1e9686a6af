"""Wiring equations: every form that is allowed, and every one that is refused."""

from __future__ import annotations

import pytest
from toy_confs import Workspace, changed

from assembler.errors import SpecError, WiringError
from assembler.model.equations import Binary, Call, Equation, Scalar, Stream
from assembler.model.scope import Callee, Scope
from assembler.model.wiring import parse_wiring as parse

BLOCKS = {
    "attn": Callee(takes=1, caches=True, where="f.yaml:1"),
    "mlp": Callee(takes=1, caches=False, where="f.yaml:2"),
    "norm": Callee(takes=1, caches=False, where="f.yaml:3"),
    "mix": Callee(takes=2, caches=False, where="f.yaml:4"),
}
LAYER = Scope(("x",), ("x",), BLOCKS, ("hidden_size", "num_layers", "i"))


def _parse(*lines: str, scope: Scope = LAYER, unused: bool = True) -> tuple[Equation, ...]:
    """The equations, all blocks called once more at the end so that none is unused."""
    if unused:
        lines = (*lines, *_call_the_others(lines))
    where = [f"f.yaml:{number}" for number in range(10, 10 + len(lines))]
    return parse(lines, where, scope)[: len(lines)]


def _call_the_others(lines: tuple[str, ...]) -> list[str]:
    text = " ".join(lines)
    rest = [name for name in BLOCKS if f"{name}(" not in text]
    calls = [f"{name}({', '.join('x' * BLOCKS[name].takes)})" for name in rest]
    return [f"x = x + {' + '.join(calls)}"] if calls else []


def _refusal(line: str, scope: Scope = LAYER) -> str:
    with pytest.raises(WiringError) as caught:
        _parse(line, scope=scope)
    (first, *others) = str(caught.value).splitlines()
    assert not others
    assert first.startswith("f.yaml:10: ")
    return first.removeprefix("f.yaml:10: ")


@pytest.mark.parametrize(
    "line",
    [
        "x = x + attn(norm(x))",
        "x = norm(x + attn(x))",
        "x = x + norm(mlp(norm(x)))",
        "x = x + attn(norm(x)) + mlp(norm(x))",
        "x = x + 0.22 * attn(norm(x))",
        "x = x + attn(norm(x)) * 2",
        "x = x - attn(x) / 3",
        "x = 1 - x",
        "x = -x + attn(x)",
        "x = 2.5e-3 * x",
        "x = sqrt(1 - 1/(2*(i+1))) * x + attn(norm(x)) / sqrt(2*(i+1))",
        "x = x * (hidden_size ** -0.5) + mlp(x) * (num_layers // 2 % 3)",
        "x = x * min(1, i, 3) * max(2, hidden_size) * round(2.5) * abs(-1)",
        "x = softcap(x, 30.0)",
        "x = softcap(x, 2 * 15)",
        "x = softcap(x, None)",
        "x = tanh(exp(log(sqrt(x))))",
        "x = mix(x, mlp(x))",
        "x = x * mlp(x) / norm(x)",
        "  x = x + mlp( norm( x ) )  ",
        "x = x + mlp(x)  # as in the paper",
    ],
)
def test_what_is_allowed(line: str) -> None:
    assert _parse(line)[0].text == line.strip()


def test_streams_of_one_s_own() -> None:
    equations = _parse("h = norm(x)", "x = x + attn(h) + mlp(h)", "x = mix(x, h)")
    assert [equation.targets for equation in equations] == [("h",), ("x",), ("x",)]


def test_the_tree_of_an_equation() -> None:
    equation = _parse("x = x + 2 * mlp(x)")[0]
    assert isinstance(equation.value, Binary)
    assert equation.value.left == Stream("x")
    product = equation.value.right
    assert isinstance(product, Binary) and isinstance(product.left, Scalar)
    assert product.right == Call("mlp", (Stream("x"),), "block")
    assert (equation.targets, equation.where) == (("x",), "f.yaml:10")


@pytest.mark.parametrize(
    ("line", "per_layer"), [("x = 2 * x", False), ("x = (i + 1) * x", True), ("x = x / i", True)]
)
def test_numbers_that_differ_from_layer_to_layer(line: str, per_layer: bool) -> None:
    value = _parse(line)[0].value
    assert isinstance(value, Binary)
    scalar = value.left if isinstance(value.left, Scalar) else value.right
    assert isinstance(scalar, Scalar) and scalar.per_layer is per_layer


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("x = __import__('os').system('ls')", "attribute access ('.') is not allowed"),
        ("x = (mlp)(x)(x)", "a call of something else than a name is not allowed"),
        ("x = __import__('os')", "unknown block or function '__import__'."),
        ("x = eval('x')", "unknown block or function 'eval'."),
        ("x = x.data", "attribute access ('.') is not allowed"),
        ("x = attn.o(x)", "attribute access ('.') is not allowed"),
        ("x = (lambda y: y)(x)", "lambda is not allowed"),
        ("x = lambda: x", "lambda is not allowed"),
        ("x = [y for y in x]", "a comprehension is not allowed"),
        ("x = {y for y in x}", "a comprehension is not allowed"),
        ("x = {y: y for y in x}", "a comprehension is not allowed"),
        ("x = mlp(y for y in x)", "a comprehension is not allowed"),
        ("x = x[0]", "indexing ('[...]') is not allowed"),
        ("x = [x][0]", "indexing ('[...]') is not allowed"),
        ("x = f'{x}'", "an f-string is not allowed"),
        ("x = mlp(x=x)", "mlp(...) takes plain arguments; options belong to the block"),
        ("x = mlp(*x)", "mlp(...) takes plain arguments"),
        ("x = mlp(**x)", "mlp(...) takes plain arguments"),
        ("x = (y := x)", "':=' is not allowed"),
        ("x = x if i else -x", "if ... else is not allowed"),
        ("x = x and x", "and / or is not allowed"),
        ("x = x > 0", "a comparison is not allowed"),
        ("x = not x", "this operator is not allowed"),
        ("x = ~x", "this operator is not allowed"),
        ("x = [x, x]", "a list ('[...]') is not allowed"),
        ("x = (x, x)", "a tuple is not allowed"),
        ("x = {x}", "a set ('{...}') is not allowed"),
        ("x = {1: x}", "a mapping ('{...}') is not allowed"),
        ("x = await x", "await is not allowed"),
        ("x = x ** 2", "'x ** 2': streams take + - * / only"),
        ("x = x % 2", "'x % 2': streams take + - * / only"),
        ("x = x @ x", "'x @ x': streams take + - * / only"),
        ("x = 'text' * x", "'text' is no number"),
        ("x = True * x", "True is no number"),
        ("x = None", "None is no number"),
        ("x = ... + x", "Ellipsis is no number"),
        ("x = 2j * x", "2j is no number"),
        ("x = 3", "the right side uses no stream, so it would be the same for any text"),
        ("x = mlp(3)", "the arguments of mlp(...) are streams, not numbers"),
        ("x = mlp()", "mlp(...) takes 1 stream, not 0"),
        ("x = mlp(x, x)", "mlp(...) takes 1 stream, not 2"),
        ("x = mix(x)", "mix(...) takes 2 streams, not 1"),
        ("x = attn(x) + attn(norm(x))", "attn(...) is called twice, but caches keys and values"),
        ("x = softcap(x)", "softcap(...) takes 2 arguments, not 1"),
        ("x = tanh(x, x)", "tanh(...) takes 1 arguments, not 2"),
        ("x = floor(x)", "floor(...) takes numbers, not streams"),
        ("x = max(x, 0)", "max(...) takes numbers, not streams"),
        ("x = atn(x)", "unknown block or function 'atn'. Did you mean 'attn'?"),
        ("x = layers(x)", "unknown block or function 'layers'."),
        ("x = y", "unknown stream 'y'. Known here: x, "),
        ("x = hiden_size * x", "unknown stream 'hiden_size'. Did you mean 'hidden_size'?"),
        ("x = attn + x", "'attn' is a block: call it, attn(x)"),
        ("mlp = x", "'mlp' is a block, so a stream cannot be called that"),
        ("i = x", "'i' is a number in every equation: use another name"),
        ("sqrt = x", "'sqrt' is a function in every equation: use another name"),
        ("ctx = x", "'ctx' is an input of the model: use another name"),
        ("x[0] = mlp(x)", "indexing ('[...]') cannot be assigned to"),
        ("x.data = mlp(x)", "attribute access ('.') cannot be assigned to"),
        ("*x = mlp(x)", "'*' cannot be assigned to"),
        ("x, y = mlp(x)", "the right side gives 1 stream, not 2"),
        ("x, x = mlp(x)", "one stream is set twice"),
        ("x = h = mlp(x)", "an equation is one assignment, such as"),
        ("x += mlp(x)", "an equation is one assignment, such as"),
        ("x: int = mlp(x)", "an equation is one assignment, such as"),
        ("mlp(x)", "an equation is one assignment, such as"),
        ("import os", "an equation is one assignment, such as"),
        ("x = mlp(x); import os", "an equation is one assignment, such as"),
        ("def f(): pass", "an equation is one assignment, such as"),
        ("", "an equation is one assignment, such as"),
        ("x = ", "not an equation: invalid syntax"),
        ("x = (mlp(x)", "not an equation: '(' was never closed"),
        ("x = 1if i else x", "not an equation: invalid decimal literal"),
        ("x = mlp(x)\0", "not an equation: "),
        ("x = " + "-" * 5000 + "x", "not an equation: it nests too deeply"),
        ("x = " + "mlp(" * 120 + "x" + ")" * 120, "not an equation: it nests too deeply"),
        ("x = x" + " + x" * 300, "not an equation: it nests too deeply"),
        ("x = x" + " " * 30_000, "not an equation: it is longer than 20000 characters"),
    ],
)
def test_what_is_refused(line: str, message: str) -> None:
    text = _refusal(line)
    assert message in text
    assert len(text) < 400, "a message quotes long lines only in part"


def test_several_findings_are_one_error() -> None:
    with pytest.raises(WiringError) as caught:
        _parse("x = atn(x)", "y = x.data", "x = x + y + z", unused=False)
    assert [line.split(" (in")[0] for line in str(caught.value).splitlines()] == [
        "f.yaml:10: unknown block or function 'atn'. Did you mean 'attn'? Known here: attn, mlp, "
        "norm, mix, exp, log, sigmoid, softcap, sqrt, tanh",
        "f.yaml:11: attribute access ('.') is not allowed in an equation",
        "f.yaml:12: unknown stream 'z'. Known here: x, y, hidden_size, num_layers, i",
    ]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["x = x + attn(norm(x))"], "f.yaml:2: block 'mlp' is declared but no equation calls it"),
        (["h = attn(x)", "x = x + mlp(norm(x))"], "f.yaml:10: 'h' is set and then not used"),
        (["x = attn(norm(x))", "x = mlp(norm(y))"], "unknown stream 'y'"),
        (["h = attn(x)", "h = mlp(norm(x))", "x = x + h"], "f.yaml:10: 'h' is set and then not"),
    ],
)
def test_what_would_be_computed_in_vain(lines: list[str], message: str) -> None:
    with pytest.raises(WiringError) as caught:
        _parse(*lines, unused=False)
    assert message in str(caught.value)


def test_an_overwritten_input_is_no_finding() -> None:
    lines = ("x = attn(x)", "h = x", "x = mlp(h)", "x = x + mix(h, norm(x))")
    assert tuple(equation.text for equation in _parse(*lines, unused=False)) == lines


MODEL = Scope(
    ("tokens",),
    ("logits",),
    {name: Callee(1, False, f"f.yaml:{name}") for name in ("embed", "norm", "head")},
    ("hidden_size",),
    layers=2,
)


def _model(*lines: str) -> tuple[Equation, ...]:
    return parse(lines, [f"f.yaml:{n}" for n in range(len(lines))], MODEL)


def test_the_equations_of_a_model() -> None:
    first, _ = _model("a, b = layers(embed(tokens), norm(embed(tokens)))", "logits = head(a)")
    assert first.targets == ("a", "b")
    assert isinstance(first.value, Call) and first.value.kind == "layers"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["h = embed(tokens)", "logits = head(norm(h))"], "no equation up to here calls layers"),
        (["a, b = layers(embed(tokens))"], "layers(...) takes 2 streams, not 1"),
        (["a = layers(embed(tokens), tokens)"], "the right side gives 2 streams, not 1"),
        (["h = embed(tokens)", "a, b = layers(h, h)", "l = head(norm(a))"], "no equation up to"),
        (["h = embed(tokens)", "a, b = layers(h, h)", "a, b = layers(a, b)"], "is called twice"),
        (["layers = embed(tokens)"], "'layers' is a function in every equation"),
        (["logits = i * tokens"], "unknown stream 'i'"),
    ],
)
def test_what_is_wrong_with_a_model(lines: list[str], message: str) -> None:
    with pytest.raises(WiringError) as caught:
        _model(*lines)
    assert message in str(caught.value)


def test_errors_of_all_kinds_and_of_the_model_come_together(ws: Workspace) -> None:
    text = changed(
        ("count: 2", "count: 2\n  kinds: b if i else a\n  variants:\n    a: {}\n"
         "    b: {wiring: [x = x + foo(x)]}"),
        ("x = x + mlp(mlp_norm(x))", "x = x + bar(x)"),
        ("logits = lm_head(norm(x))", "logits = baz(x)"),
    )  # fmt: skip
    with pytest.raises(WiringError) as caught:
        ws.build(ws.spec(text))
    assert [line.split(". ")[0] for line in str(caught.value).splitlines()] == [
        "conf/my.yaml:18: unknown block or function 'bar'",
        "conf/my.yaml:10: unknown block or function 'foo'",
        "conf/my.yaml:23: unknown block or function 'baz'",
    ]


@pytest.mark.parametrize(
    ("equation", "message"),
    [
        ("x = x + 1 / 0 * mlp(mlp_norm(x))", "'1 / 0' cannot be computed: division by zero"),
        ("x = x + 1 / i * mlp(mlp_norm(x))", "'1 / i' cannot be computed: division by zero in"),
        ("x = x + 10 ** 999 * mlp(mlp_norm(x))", "an exponent above 256 is too large"),
        ("x = x + sqrt(-1) * mlp(mlp_norm(x))", "'sqrt(-1)' cannot be computed"),
        ("x = x + (-1) ** 0.5 * mlp(mlp_norm(x))", "is no real number"),
    ],
)
def test_numbers_that_cannot_be_computed(ws: Workspace, equation: str, message: str) -> None:
    with pytest.raises(WiringError) as caught:
        ws.build(ws.base(("x = x + mlp(mlp_norm(x))", equation)))
    assert str(caught.value).startswith("conf/my.yaml:14: ")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("3 + foo(x)", "unknown block or function 'foo'"),
        ([3], "a list ('[...]') is not allowed"),
        (True, "True is no number"),
        ({"a": 1}, "a mapping ('{...}') is not allowed"),
    ],
)
def test_what_a_config_puts_into_an_equation_is_checked_too(
    ws: Workspace, value: object, message: str
) -> None:
    spec = ws.base(("lm_head(norm(x))", "lm_head(norm(x)) / ${hf:v}"), config={"v": value})
    with pytest.raises(SpecError) as caught:
        ws.build(spec)
    assert message in str(caught.value)
