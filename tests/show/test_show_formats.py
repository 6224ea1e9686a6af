"""The tree, the figure, Mermaid, JSON and the colours: what they say is what the model is."""

from __future__ import annotations

import json
import re
from itertools import product
from xml.etree import ElementTree

import pytest
from rich.console import Console

from assembler.showing.colours import DARK, LIGHT, Theme, contrast
from assembler.showing.numbers import percent, short_count
from assembler.showing.tree import render_tree
from assembler.showing.view import PARTS

SVG = "{http://www.w3.org/2000/svg}"
# The grammar of what Mermaid is given (its own parser takes all of it: a check by hand).
MERMAID = re.compile(
    r"flowchart TD|end|subgraph k\d+\[\"[^\"<>]+\"\]|[mk]\d*_\d+ --> [mk]\d*(_\d+)?|k\d+ --> m_\d+"
    r"|[mk]\d*_\d+(\[\"<b>[^\"<>]+</b><br/>[^\"<>]+\"\]:::[a-z]+|\(\(\"[^\"<>]+\"\)\)"
    r"|\(\[\"[^\"<>]+\"\]\))"
    r"|classDef [a-z]+ fill:#[0-9a-f]{6},stroke:#[0-9a-f]{6},color:#[0-9a-f]{6}"
)


def test_the_tree(draw) -> None:
    tree = draw("gemma-2-9b", 4).text("tree")
    for pattern in (
        r"^gemma-2-9b  conf gemma2$",
        r"^9\.24 B parameters, 42 layers of width 3584, 18\.5 GB on disk$",
        r"^▇{42}$",
        r"├─ layers 0-40 step 2 sliding_attention × 21 +4\.16 B +45\.0 %",
        r"│  │ x = x \+ post_attn_norm\(attn\(attn_norm\(x\)\)\)",
        r"│  │  │ 16 heads, 8 kv heads, head 256, RoPE θ 10k, window 4096, soft-cap 50$",
        r"├─ qkv  q \+ k \+ v +8192 × 3584 +BF16 +617 M +2048 × 3584 \(column\)",
        r"└─ lm_head LMHead  tied to embed\.weight",
        r"^parameters of the 4 ranks: 2\.31 B each$",
        r"^464/464 tensors, 100 % of bytes, 338/338 parameters$",
    ):
        assert re.search(pattern, tree, re.M), (pattern, tree)
    order = [tree.index(f"─ {name} ") for name in ("embed", "layers", "norm", "lm_head")]
    assert order == sorted(order)


@pytest.mark.parametrize("width", [64, 80, 100])
def test_a_narrow_terminal_breaks_no_branch(draw, width: int) -> None:
    console = Console(width=width, highlight=False, color_system=None)
    with console.capture() as capture:
        console.print(render_tree(draw("gemma-2-9b").view, width))
    lines = capture.get().splitlines()
    begin = next(n for n, line in enumerate(lines) if line.startswith("──"))
    tree = lines[begin + 1 : lines.index("", begin)]
    assert len(tree) > 30 and all(line[0] in "│├└ " for line in tree)
    assert max(map(len, lines)) <= width
    assert "│  │ x = x + post_attn_norm(attn(attn_norm(x)))" in tree, "it may go under the numbers"


def test_counts_are_the_published_ones(draw) -> None:
    view = draw("qwen3-30b-a3b").view
    assert view.numel == 30_532_122_624 and sum(view.by_part.values()) == view.numel
    assert short_count(view.active) == "3.35 B", "Qwen counts 3.3 B"
    dense = draw("llama-3.1-8b").view
    assert dense.active == dense.numel == 8_030_261_248
    assert dense.cache_values == 2 * 32 * 8 * 128
    shared = draw("llama-3.1-8b", 16).view
    assert shared.cache_values == 2 * 32 * 128, "one head a rank is the least"
    assert sum(dense.disk_by_part.values()) == dense.checkpoint.nbytes == 2 * dense.numel


@pytest.mark.parametrize(
    ("release", "block", "facts"),
    [
        ("gemma-3-1b", "attn", "4 heads, 1 kv head, head 256, QK-norm, RoPE θ 10k, window 512"),
        ("llama-2-7b", "attn", "32 heads, head 128, RoPE θ 10k"),
        ("starcoder2-3b", "attn", "24 heads, 2 kv heads, head 128, RoPE θ 1M, window 4096"),
        ("gpt-oss-20b", "moe", "32 experts, top 4, softmax router, width 2880, quick_gelu"),
        ("gpt2", "attn", "12 heads, no RoPE"),
        ("gemma-3-1b", "attn_norm", "1 + weight"),
    ],
)
def test_facts_are_short(draw, release: str, block: str, facts: str) -> None:
    (found,) = (b for b in draw(release).view.kinds[0].blocks if b.name == block)
    assert ", ".join(found.facts) == facts


def test_json(draw) -> None:
    data = json.loads(draw("gemma-2-9b", 4).text("json"))
    assert data["parameters"] == 9_241_705_984
    assert set(data["parameters_by_part"]) == {"embedding", "attention", "mlp", "norm"} < set(PARTS)
    attn = data["kinds"][0]["blocks"][1]
    assert (attn["name"], attn["block"], attn["part"]) == ("attn", "RopeAttn", "attention")
    assert ["window", "4096"] in attn["fields"]
    assert attn["weights"][0]["links"][1]["source"] == "model.layers.{i}.self_attn.k_proj.weight"


@pytest.mark.parametrize("release", ["gemma-2-9b", "command-r", "gpt2", "deepseek-v2-lite"])
def test_the_figure_is_sound(draw, release: str) -> None:
    view = draw(release).view
    root = ElementTree.fromstring(draw(release).text("svg"))
    assert root.tag == f"{SVG}svg" and not root.findall(f".//{SVG}a"), "nothing to link to"
    titles = [title.text.split(":")[0] for title in root.iter(f"{SVG}title")][1:]
    calls = [
        node.label
        for section in view.kinds
        for diagram in (view.model.diagram, section.diagram)
        for node in diagram.nodes
        if node.kind == "block"
    ]
    assert sorted(titles) == sorted(calls)
    _, _, width, height = map(float, root.get("viewBox").split())
    rects = [rect for rect in root.iter(f"{SVG}rect") if rect.get("class") != "backdrop"]
    assert all(float(rect.get("width")) <= width for rect in rects) and height > 300


def test_the_figure_escapes_what_it_is_told(draw) -> None:
    from dataclasses import replace

    from assembler.showing.figure import standalone_svg
    from assembler.showing.mermaid import mermaid_text
    from assembler.showing.page import html_page

    view = replace(draw("gpt2").view, title="</script><b>&\"'")
    assert "</script><b>" not in standalone_svg(view)
    assert html_page(view).count("</script>") == 2
    section = replace(view.kinds[0], kind='a"<b>#')
    odd = mermaid_text(replace(view, kinds=(section, section)))
    assert 'subgraph k0["a#quot;#lt;b#gt;#35;: layers 0-11, × 12"]' in odd


@pytest.mark.parametrize("release", ["gemma-2-9b", "command-r", "gpt2", "deepseek-v2-lite"])
def test_mermaid(draw, release: str) -> None:
    view, text = draw(release).view, draw(release).text("mermaid")
    lines = [line.strip() for line in text.splitlines()]
    assert [line for line in lines if not MERMAID.fullmatch(line)] == []
    assert lines.count("end") == len(view.kinds)
    named = {line.split("[")[0].split("(")[0] for line in lines if "[" in line or "(" in line}
    used = {end for line in lines if " --> " in line for end in line.split(" --> ")}
    assert {end for end in used if "_" in end} <= named
    classes = set(re.findall(r":::(\w+)", text))
    assert classes == set(re.findall(r"classDef (\w+)", text))


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_colours_can_be_told_apart(theme: Theme) -> None:
    """WCAG 2.2: text 4.5 to 1, marks that carry a meaning 3 to 1."""
    grounds = (theme.background, theme.surface)
    assert set(theme.marks) == set(theme.fills) == set(PARTS)
    for ground, text in product((*grounds, *theme.fills.values()), (theme.text, theme.muted)):
        assert contrast(text, ground) >= 4.5, (text, ground)
    for ground, mark in product(grounds, (*theme.marks.values(), *theme.kinds, theme.edge)):
        assert contrast(mark, ground) >= 3, (mark, ground)
    assert all(contrast(theme.accent, ground) >= 4.5 for ground in grounds)
    assert len(set(theme.kinds)) == len(theme.kinds)


def test_contrast_is_that_of_the_standard() -> None:
    assert contrast("#000000", "#ffffff") == 21
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


def test_numbers() -> None:
    assert [short_count(n) for n in (96, 7168, 999_600, 494e6, 8.19e9, 671e9, 1.04e12)] == [
        "96",
        "7.17 k",
        "1.00 M",
        "494 M",
        "8.19 B",
        "671 B",
        "1.04 T",
    ]
    shares = [percent(n, 1000) for n in (0, 0.1, 333, 1000)]
    assert shares == ["0.0 %", "< 0.1 %", "33.3 %", "100.0 %"]
