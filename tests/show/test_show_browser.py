"""The page in a real browser: as a person sees and uses it, with a mouse, a keyboard, a phone."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from devtools import Browser, Page

from assembler.showing.colours import contrast

pytestmark = pytest.mark.browser
Open = Callable[..., Page]  # (release, *, width=1280, tp=1, media features)
SHOWN = "[...document.querySelectorAll('{}')].filter(e => e.checkVisibility()).map(e => {})"


@pytest.fixture
def visit(chromium: Browser, draw, tmp_path: Path) -> Open:
    """Opens the page of a release; at the end, the console must have been silent."""
    opened: list[Page] = []

    def visit(release: str, *, tp: int = 1, **options) -> Page:
        file = tmp_path / f"{release}.html"
        draw(release, tp).save(file)
        opened.append(chromium.page(file, prefers_reduced_motion="reduce", **options))
        return opened[-1]

    yield visit
    assert [page.complaints() for page in opened] == [[] for _ in opened]


def shown(page: Page, selector: str, value: str = "e.textContent") -> list[str]:
    """What is to be seen of the elements."""
    return page.run(SHOWN.format(selector, value))


def text(page: Page, selector: str) -> str:
    return page.run(f"document.querySelector({json.dumps(selector)}).textContent")


def test_a_block_opens_to_its_weights(visit: Open) -> None:
    page = visit("llama-3.1-8b")
    assert shown(page, ".weight .head code") == []
    page.click('svg.figure a[href="#k0-attn"]')
    assert shown(page, ".weight .head code") == ["qkv.weight", "o.weight"]
    assert shown(page, "a.tensor")[:2] == [
        "model.layers.{i}.self_attn.q_proj.weight",
        "model.layers.{i}.self_attn.k_proj.weight",
    ]
    top = page.run("document.querySelector('#k0-attn').getBoundingClientRect().top")
    assert 0 <= top < 900, "and is in view"
    page.click("#m-embed summary")
    assert "model.embed_tokens.weight" in shown(page, "a.tensor")


def test_a_block_has_an_address(visit: Open) -> None:
    page = visit("gemma-2-9b", at="k1-mlp")
    assert page.run("document.querySelector('#k1-mlp').open")
    assert shown(page, "figcaption") == ["layers of kind full_attention"]
    page.run("document.querySelector('.skip').focus()")
    page.call("Input.dispatchKeyEvent", type="keyDown", key="Enter", text="\r")
    page.until("location.hash === '#blocks'")
    assert page.run("document.querySelectorAll('details[open]').length") == 1


def test_a_layer_names_its_own_tensors(visit: Open) -> None:
    page = visit("gemma-2-9b")
    page.click('[data-layer="7"]')
    assert shown(page, "figcaption") == ["layers of kind full_attention"]
    (chosen,) = shown(page, "button.kind[aria-pressed=true]")
    assert chosen.startswith("full_attention")
    page.click('svg.figure a[href="#k1-mlp"]')
    assert shown(page, "#k1-mlp a.tensor") == [
        f"model.layers.7.mlp.{name}_proj.weight" for name in ("gate", "up", "down")
    ]
    page.click("#chosen button")
    assert shown(page, "#k1-mlp a.tensor")[0] == "model.layers.{i}.mlp.gate_proj.weight"


def test_the_kinds_are_chosen_by_keyboard(visit: Open) -> None:
    page = visit("gemma-2-9b")
    page.run("document.querySelector('.strip .cell').focus()")
    for _ in range(3):
        page.press("ArrowRight")
    assert text(page, "#chosen").startswith("Layer 3:")
    assert page.run("document.activeElement.dataset.layer") == "3"
    page.press("End")
    assert text(page, "#chosen").startswith("Layer 41:")
    page.run("document.querySelector('svg.figure a[href=\"#k1-attn\"]').focus()")
    page.call("Input.dispatchKeyEvent", type="keyDown", key="Enter", text="\r")
    assert page.run("document.querySelector('#k1-attn').open")
    assert page.run("document.activeElement.closest('details').id") == "k1-attn"


def test_the_search_goes_both_ways(visit: Open) -> None:
    page = visit("qwen3-30b-a3b")
    page.run("document.querySelector('#query').focus()")
    page.type("layers.40. experts.13. gate")
    assert text(page, "#count") == "1 found"
    assert text(page, "#results code") == "model.layers.40.mlp.experts.13.gate_proj.weight"
    assert text(page, "#results a") == "→ layers.40.moe.experts.gate_up.weight"
    page.click("#results a")
    assert page.run("document.querySelector('#k0-moe').open")
    assert text(page, "#chosen").startswith("Layer 40:")
    found = shown(page, "#k0-moe a.tensor")
    assert "model.layers.40.mlp.experts.{0-127}.gate_proj.weight" in found
    page.click("#k0-moe a.tensor")  # and back: the router's weight
    assert page.run("document.querySelector('#query').value") == "model.layers.40.mlp.gate.weight"
    assert text(page, "#count") == "1 found"
    page.run("const q = document.querySelector('#query'); q.value = ''; q.focus()")
    page.type("moe.experts.down")
    assert text(page, "#count") == "6,144 found, the first 60 are listed"


def test_what_has_no_tensor_is_found_too(visit: Open) -> None:
    page = visit("gemma-2-9b")
    page.run("document.querySelector('#query').focus()")
    page.type("lm_head")
    assert text(page, "#results").endswith("lm_head.weightshares the memory of embed.weight")


def test_memory_by_type(visit: Open) -> None:
    page = visit("gpt-oss-20b", tp=2)
    assert text(page, "#bars .experts .size") == "10.2 GB", "as MXFP4 on disk"
    page.run(
        "const d = document.querySelector('#dtype'); d.value = '2'; "
        "d.dispatchEvent(new Event('change'))"
    )
    assert text(page, "#bars .experts .size") == "38.2 GB" and text(page, "#total") == "41.8 GB"
    assert re.fullmatch(r"a rank holds 20\.9 GB", text(page, "#more"))
    bar = "document.querySelector('#bars .experts rect')"
    share = page.run(f"parseFloat({bar}.getAttribute('width'))")
    assert share == pytest.approx(91.4, abs=0.1)


@pytest.mark.parametrize("release", ["gemma-2-9b", "deepseek-v2-lite", "command-r", "gpt2"])
def test_a_phone(visit: Open, release: str) -> None:
    page = visit(release, width=360, height=740)
    page.run("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    page.run("const q = document.querySelector('#query'); q.focus()")
    page.type("layers.1 weight")
    assert page.run("document.documentElement.scrollWidth") == 360, "nothing sticks out"
    figure = page.run(
        "document.querySelector('figure:not([hidden]) svg').getBoundingClientRect().width"
    )
    assert 250 < figure <= 328
    small = page.run(
        "[...document.querySelectorAll('button, summary')].filter(e => e.checkVisibility())"
        ".filter(e => e.getBoundingClientRect().height < 24).length"
    )
    assert small == 0, "what a thumb presses is large enough"


def rgb(colour: str) -> str:
    return "#" + "".join(f"{int(part):02x}" for part in re.findall(r"\d+", colour)[:3])


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark(visit: Open, scheme: str) -> None:
    page = visit("llama-3.1-8b", prefers_color_scheme=scheme)

    def colours(selector: str) -> tuple[str, str]:
        style = f"getComputedStyle(document.querySelector({json.dumps(selector)}))"
        ground = "getComputedStyle(document.body).backgroundColor"
        return rgb(page.run(f"{style}.color")), rgb(page.run(ground))

    grounds = set()
    for _ in range(2):  # as the system is, and the other way by the button
        for selector in ("h1", ".told", "a.tensor", "summary .facts", ".where", ".complete"):
            assert contrast(*colours(selector)) >= 4.5, selector
        card = "document.querySelector('.attention .card')"
        name = "document.querySelector('.attention .name')"
        fills = [rgb(page.run(f"getComputedStyle({part}).fill")) for part in (card, name)]
        assert contrast(*fills) >= 4.5
        grounds.add(colours("h1")[1])
        page.click("#theme")
    assert grounds == {"#ffffff", "#0f141c"}


def test_nothing_is_asked_of_a_network(visit: Open) -> None:
    page = visit("llama-3.1-8b")
    assert page.run("performance.getEntriesByType('resource').length") == 0
    source = page.run("document.documentElement.outerHTML")
    assert "default-src 'none'" in source and not re.search(r'(src|href)="(?!#)', source)
    page.run("fetch('data:,x').then(() => 'went', () => 'refused').then(r => { window.r = r; })")
    page.until("window.r !== undefined")
    assert page.run("window.r") == "refused", "its own policy forbids it"
    asked = [e for e in page.complaints() if "Content Security Policy" in e]
    assert len(asked) == len(page.complaints()) >= 1
    page.forget()


def test_it_can_be_read_without_a_script(chromium: Browser, draw, tmp_path: Path) -> None:
    file = tmp_path / "plain.html"
    draw("gemma-2-9b").save(file)
    page = chromium.page(file, script=False)
    assert page.seen("figure svg") == 2, "both kinds"
    assert page.seen("section.blocks") == 3 and page.seen("noscript") == 1
    page.click("#k0-attn summary")
    assert page.seen("#k0-attn .weight") == 2
