"""docs/faq.md: each pain is inflicted on a checkpoint, and the command says what the page says."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from page_commands import is_shown
from page_runs import ROOT, in_folder
from tiny_llama import EOS, SIZES, Weights, change_config, change_tensors, save_llama

PAGE = (ROOT / "docs" / "faq.md").read_text("utf-8")
SECTION = re.compile(r"^## (.*?)\n(.*?)(?=^## |\Z)", re.M | re.S)
COMMAND = re.compile(r"```sh\n(.*?)\n```\n\n```\n(.*?)```", re.S)


def renamed(change: Callable[[str], str]) -> Callable[[Path], object]:
    """A Llama whose tensors are called otherwise."""

    def make(folder: Path) -> None:
        def rename(weights: Weights) -> None:
            for name in list(weights):
                weights[change(name)] = weights.pop(name)

        save_llama(folder)
        change_tensors(folder, rename)

    return make


def half_a_projection(folder: Path) -> None:
    save_llama(folder)
    change_tensors(folder, lambda w: w.pop("model.layers.1.self_attn.k_proj.weight"))


def a_lost_shard(folder: Path) -> None:
    model = save_llama(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="40KB")
    (folder / "model-00002-of-00004.safetensors").unlink()


def two_copies(folder: Path) -> None:
    save_llama(folder)
    shutil.copy(folder / "model.safetensors", folder / "consolidated.safetensors")


def tied_with_a_head(folder: Path) -> None:
    save_llama(folder)
    change_config(folder, tie_word_embeddings=True)


def _save(kind: str, folder: Path, **fields: object) -> None:
    config = getattr(transformers, f"{kind}Config")(**SIZES, eos_token_id=EOS, **fields)
    torch.manual_seed(0)
    getattr(transformers, f"{kind}ForCausalLM")(config).save_pretrained(folder)


def a_lost_expert(folder: Path) -> None:
    _save("Mixtral", folder, num_local_experts=12)
    change_tensors(folder, lambda w: [w.pop(k) for k in list(w) if "experts.10." in k])


def norms_with_one_added(folder: Path) -> None:
    _save("Gemma", folder, head_dim=8)
    change_tensors(folder, lambda w: [w[k].add_(1) for k in w if "norm" in k])


def a_config(folder: Path) -> None:
    shutil.copy(ROOT / "examples" / "override_sweep" / "config.json", folder.parent)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "Weights that are not loaded, and nobody says so": half_a_projection,
    "Files saved again under other names": renamed(lambda name: f"language_model.{name}"),
    "A name that is only a little different": renamed(
        lambda name: name.replace("self_attn.q", "attention.q")
    ),
    "A shard that is not on the disk": a_lost_shard,
    "Two copies of the same weights in one folder": two_copies,
    "Tied, or a head of its own?": tied_with_a_head,
    "Experts missing, or in the wrong order": a_lost_expert,
    "More ranks than key/value heads": save_llama,
    "One added to the norms twice": norms_with_one_added,
    "Fluent nonsense: a wrong rotation, a swapped half, a forgotten scale": save_llama,
    "Will it fit?": a_config,
}


@pytest.mark.parametrize("title", DAMAGE)
def test_the_command_says_what_the_page_says(title: str, tmp_path: Path, monkeypatch, capsys):
    (text,) = [body for name, body in SECTION.findall(PAGE) if name == title]
    ((command, shown),) = COMMAND.findall(text)
    folder = tmp_path / "path" / "to" / "model"
    folder.mkdir(parents=True)
    DAMAGE[title](folder)
    run = in_folder(tmp_path, monkeypatch, capsys)
    printed = run(command.split()).replace(f"{tmp_path}/", "").replace(f"{ROOT}/", "")
    assert is_shown(shown, printed), printed


def test_every_command_of_the_page_is_run():
    assert [name for name, body in SECTION.findall(PAGE) if "```sh" in body] == list(DAMAGE)


def test_every_pain_has_its_report():
    pains = [body for _, body in SECTION.findall(PAGE) if body.lstrip().startswith("*")]
    assert len(pains) >= 10
    for body in pains:
        assert re.search(r"\(https://github\.com/[\w.-]+/[\w.-]+/(issues|pull)/\d+\)", body), body
