"""A checkpoint on the Hub: judged by its headers where it is, downloaded only to be loaded."""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
import torch
from hub_server import Hub, commit_of, serve
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_llama import SIZES, change_tensors, save_llama
from transformers import LlamaConfig, LlamaForCausalLM

from assembler import LLM, SamplingParams, coverage, explain, load_model, logits
from assembler.errors import AssemblerError, CheckpointError
from assembler.loading import assemble, load_weights
from assembler.weights.hub_headers import FIRST_BYTES
from assembler.weights.index import read_checkpoint_index
from assembler.weights.safetensors_index import INDEX_NAME

ID = "org/model"
# 340 MB in bfloat16: what is sent for its headers is then the share it is of a real model.
LARGE = {
    **SIZES,
    "vocab_size": 32_000,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 6,
}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A server that HF_ENDPOINT names, an empty Hub cache, nobody logged in, no local folders."""
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    huggingface_hub.close_session()  # its proxies are those of the environment it was opened in
    with serve(Hub()) as hub:
        monkeypatch.setenv("HF_ENDPOINT", f"{hub.endpoint}/")
        yield hub
        huggingface_hub.close_session()


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """Three shards and their index; the values are holes in the files."""
    folder = tmp_path / "large"
    config = LlamaConfig(**LARGE, dtype="bfloat16", architectures=["LlamaForCausalLM"])
    config.save_pretrained(folder)
    with torch.device("meta"):
        state = LlamaForCausalLM(config).state_dict()
    names = list(state)
    weight_map = {}
    for number in range(3):
        file = folder / f"model-{number + 1:05d}-of-00003.safetensors"
        shapes = {name: list(state[name].shape) for name in names[number::3]}
        write_holes(file, shapes)
        weight_map |= dict.fromkeys(shapes, file.name)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / INDEX_NAME).write_text(json.dumps(index))
    return folder


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A model in full, with much beside it that is not for us."""
    folder = tmp_path / "tiny"
    save_llama(folder)
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    (folder / "consolidated.00.safetensors").write_bytes(b"a second copy")
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.safetensors").write_bytes(b"another one")
    return folder


def write_holes(file: Path, shapes: dict[str, list[int]], padding: int = 0) -> None:
    """A valid safetensors file in bfloat16, all zeros and hardly any blocks on the disk."""
    header: dict[str, object] = {"__metadata__": {"format": "pt", "note": "x" * padding}}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * torch.Size(shape).numel()
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    raw = json.dumps(header).encode()
    with file.open("wb") as stream:
        stream.write(struct.pack("<Q", len(raw)) + raw)
        stream.truncate(8 + len(raw) + end)
    with safe_open(file, "pt") as opened:
        assert set(opened.keys()) == set(shapes)


def weight_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def downloaded(tmp_path: Path) -> set[str]:
    """Names of the files in the Hub's cache."""
    snapshots = (tmp_path / "cache").glob("models--*/snapshots/*/**/*")
    return {file.name for file in snapshots if file.is_file()}


# --- headers only -------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [(), ("tp=[1,2,4]",)], ids=["one rank", "several sizes"])
def test_the_report_is_that_of_the_folder(hub: Hub, large: Path, tmp_path, capsys, arguments):
    hub.add(ID, large)
    arguments = (*arguments, "format=json")
    assert coverage.main([f"checkpoint={large}", *arguments]) == 0
    on_disk = capsys.readouterr().out
    assert coverage.main([f"checkpoint={ID}", *arguments]) == 0
    assert capsys.readouterr().out == on_disk.replace(str(large), ID)

    total = weight_bytes(large)
    assert total > 300_000_000
    assert hub.sent() < total / 100
    shards = [r for r in hub.requests if r.path.endswith(".safetensors") and r.status != 302]
    assert len(shards) == 3  # however many ranks were planned
    assert all(r.status == 206 and r.nbytes == FIRST_BYTES for r in shards)
    assert downloaded(tmp_path) == {"config.json", INDEX_NAME}


def test_explain_reads_headers_only(hub: Hub, large: Path, tmp_path: Path, capsys):
    hub.add(ID, large)
    arguments = ["tensor=layers.3.attn.qkv.weight", "tp=2", "format=json"]
    assert explain.main([f"checkpoint={large}", *arguments]) == 0
    on_disk = capsys.readouterr().out
    assert explain.main([f"checkpoint={ID}", *arguments]) == 0
    assert capsys.readouterr().out == on_disk.replace(str(large), ID)
    assert downloaded(tmp_path) == {"config.json", INDEX_NAME}


def test_the_index_is_that_of_the_folder(hub: Hub, large: Path):
    hub.add(ID, large)
    found, on_disk = read_checkpoint_index(ID), read_checkpoint_index(large)
    assert found.remote and not on_disk.remote
    assert str(found.root) == ID and found.config == on_disk.config
    assert found.findings == on_disk.findings == ()
    placed = {n: (t.file.name, t.offset, t.nbytes, t.shape) for n, t in found.tensors.items()}
    assert placed == {
        n: (t.file.name, t.offset, t.nbytes, t.shape) for n, t in on_disk.tensors.items()
    }
    with pytest.raises(CheckpointError, match=r"only its headers were read, on the Hub"):
        found.read("model.norm.weight")
    with pytest.raises(CheckpointError, match=r"only its headers were read, on the Hub"):
        load_weights(assemble(ID, download=False))


def test_a_header_longer_than_the_first_request(hub: Hub, tmp_path: Path):
    folder = tmp_path / "long"
    folder.mkdir()
    write_holes(folder / "model.safetensors", {"w": [4096, 4096]}, padding=FIRST_BYTES)
    hub.add(ID, folder)
    index = read_checkpoint_index(ID)
    assert index.tensors["w"].shape == (4096, 4096) and index.findings == ()
    header = index.tensors["w"].offset
    assert FIRST_BYTES < header == hub.sent("model.safetensors")


def test_damage_is_found_from_afar(hub: Hub, large: Path):
    first, second, _ = sorted(large.glob("*.safetensors"))
    with second.open("r+b") as stream:
        stream.truncate(second.stat().st_size - 100)
    first.unlink()
    hub.add(ID, large)
    found, on_disk = read_checkpoint_index(ID).findings, read_checkpoint_index(large).findings
    assert [f.message for f in found] == [f.message for f in on_disk]
    hints = {f.subject: f.hint for f in found}
    assert hints[first.name].startswith("The repository lacks it: tell its owners")
    assert hints[second.name] == "The repository's file is incomplete: tell its owners."
    assert {f.kind for f in found} == {"index", "truncated"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "ends at byte 0, inside the 8-byte length"),
        (b"version https://git-lfs.github.com/spec/v1\n", "this is a Git LFS pointer"),
        (struct.pack("<Q", 2**60) + b"{}", "byte 0 gives the header 1,152,921,504,606,846,976"),
        (struct.pack("<Q", 99) + b"{}", "ends at byte 10, inside its header of 99 bytes"),
    ],
)
def test_unreadable_headers_are_refused_in_the_same_words(
    hub: Hub, tmp_path: Path, content: bytes, message: str
):
    folder = tmp_path / "broken"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(content)
    hub.add(ID, folder)
    with pytest.raises(CheckpointError, match=message) as on_disk:
        read_checkpoint_index(folder)
    with pytest.raises(CheckpointError, match=message) as found:
        read_checkpoint_index(ID)
    assert str(found.value) == str(on_disk.value).replace(str(folder), ID)


# --- which repository, which revision, and who may ------------------------------------------------


def test_a_revision(hub: Hub, tmp_path: Path):
    for revision, width in (("main", 4), ("v2", 8)):
        (tmp_path / revision).mkdir()
        write_holes(tmp_path / revision / "model.safetensors", {"w": [width]})
        hub.add(ID, tmp_path / revision, revision)
    assert read_checkpoint_index(ID).tensors["w"].shape == (4,)
    assert read_checkpoint_index(f"{ID}@v2").tensors["w"].shape == (8,)
    by_commit = f"{ID}@{commit_of(tmp_path / 'v2')}"
    assert read_checkpoint_index(by_commit).tensors["w"].shape == (8,)
    with pytest.raises(CheckpointError, match=r"org/model@v3: it has no revision 'v3'"):
        read_checkpoint_index(f"{ID}@v3")


def test_a_gated_model_wants_a_token(hub: Hub, tiny: Path, monkeypatch: pytest.MonkeyPatch):
    hub.add(ID, tiny)
    hub.gated.add(ID)
    with pytest.raises(CheckpointError, match=r"gated\. Accept its terms at http.*/org/model and"):
        read_checkpoint_index(ID)
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    assert read_checkpoint_index(ID).tensors
    assert not any(r.authorized for r in hub.requests if r.path.startswith("/cdn/"))
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(CheckpointError, match=r"refuses the token in use\. Run `hf auth login`"):
        read_checkpoint_index(ID)


def test_no_such_model(hub: Hub, tmp_path: Path):
    (tmp_path / "elsewhere" / "orgs").mkdir()
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint_index(ID)
    assert str(caught.value) == (
        "org/model: the Hub has no such public model. For a private one run `hf auth login` (or "
        "set HF_TOKEN). No local folder 'org/model' either. Did you mean 'orgs'?"
    )


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("pytorch_model.bin",), r"org/model: holds only pickled weights \(pytorch_model.bin\)"),
        (("a.Q4_0.gguf", "b.gguf"), r"GGUF files only .*`hf download org/model a\.Q4_0\.gguf`"),
        (("sub/model.safetensors",), r"org/model: holds no \*\.safetensors"),
        ((), r"org/model: holds no \*\.safetensors"),
    ],
)
def test_nothing_to_read(hub: Hub, tmp_path: Path, names: tuple[str, ...], message: str):
    folder = tmp_path / "other"
    (folder / "sub").mkdir(parents=True)
    for name in ("README.md", *names):
        (folder / name).touch()
    hub.add(ID, folder)
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint_index(ID)
    assert not any("/resolve/" in r.path for r in hub.requests)


def test_one_gguf_file_of_a_repository(hub: Hub):
    with pytest.raises(CheckpointError, match=r"is fetched by `hf download org/model x\.gguf`"):
        read_checkpoint_index("org/model/x.gguf")
    assert hub.requests == []


def test_a_local_folder_of_that_name_wins(hub: Hub, large: Path, tmp_path: Path):
    (tmp_path / "elsewhere" / "org").mkdir()
    large.rename(tmp_path / "elsewhere" / ID)
    assert not read_checkpoint_index(ID).remote
    assert hub.requests == []


# --- servers and connections that fail ------------------------------------------------------------


def unreachable(monkeypatch: pytest.MonkeyPatch, hub: Hub) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody listens there


def offline(monkeypatch: pytest.MonkeyPatch, hub: Hub) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def down(monkeypatch: pytest.MonkeyPatch, hub: Hub) -> None:
    hub.down = True


@pytest.mark.parametrize("fail", [unreachable, offline, down])
def test_without_the_hub_its_cache_is_read(hub: Hub, tiny: Path, monkeypatch, fail):
    hub.add(ID, tiny)
    assert read_checkpoint_index(ID).remote  # leaves config.json in the cache, which is no copy
    with monkeypatch.context() as patch:
        fail(patch, hub)
        with pytest.raises(CheckpointError, match=r"no complete copy is in the local cache"):
            read_checkpoint_index(ID)
    hub.down = False
    expected = load_model(ID)
    fail(monkeypatch, hub)
    index = read_checkpoint_index(ID)
    assert not index.remote and index.root.name == commit_of(tiny)
    ids = torch.tensor([[1, 2, 3]])
    assert torch.equal(logits(load_model(ID), ids), logits(expected, ids))


def test_a_server_without_ranges(hub: Hub, tmp_path: Path):
    """The headers alone cannot be had; what was to be loaded is downloaded all the same."""
    folder = tmp_path / "whole"
    save_llama(folder, hidden_size=128)
    assert weight_bytes(folder) > FIRST_BYTES
    hub.add(ID, folder)
    hub.ranges = False
    with pytest.raises(CheckpointError, match=r"does not serve parts of files\. Download the mod"):
        assemble(ID, download=False)
    assert "model.safetensors" not in downloaded(tmp_path)
    load_model(ID)
    assert "model.safetensors" in downloaded(tmp_path)


def test_the_library_is_an_extra(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(CheckpointError, match=r"pip install 'model-assembler\[hub\]'"):
        read_checkpoint_index(ID)


# --- loading ------------------------------------------------------------------------------------


def test_loading_downloads_what_it_needs(hub: Hub, tiny: Path, tmp_path: Path):
    hub.add(ID, tiny)
    model, ids = load_model(ID), torch.tensor([[1, 2, 3]])
    assert torch.equal(logits(model, ids), logits(load_model(tiny), ids))
    assert downloaded(tmp_path) == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    }
    # What is in the cache is not read from the Hub again.
    sent = hub.sent(".safetensors")
    report = read_checkpoint_index(ID)
    assert report.remote and report.tensors.keys() == load_file(tiny / "model.safetensors").keys()
    assert hub.sent(".safetensors") == sent


def test_what_would_not_load_is_not_downloaded(hub: Hub, tiny: Path, tmp_path: Path):
    change_tensors(tiny, lambda weights: weights.pop("model.norm.weight"))
    hub.add(ID, tiny)
    with pytest.raises(AssemblerError, match=r"missing: norm"):
        load_model(ID)
    assert downloaded(tmp_path) == {"config.json"}


def test_random_weights_need_none_from_the_hub(hub: Hub, tiny: Path, tmp_path: Path):
    hub.add(ID, tiny)
    assembly = assemble(ID, weights=False)
    assert assembly.plan is None and (assembly.path / "tokenizer.json").is_file()
    assert "model.safetensors" not in downloaded(tmp_path)
    assert hub.sent(".safetensors") == 0


def test_a_repeated_name_in_a_header_is_found(hub: Hub, tmp_path: Path):
    """What huggingface_hub's own reading of headers would not tell."""
    folder = tmp_path / "twice"
    folder.mkdir()
    save_file({"a": torch.zeros(4), "b": torch.zeros(4)}, folder / "model.safetensors")
    raw = (folder / "model.safetensors").read_bytes().replace(b'"b":{', b'"a":{')
    (folder / "model.safetensors").write_bytes(raw)
    hub.add(ID, folder)
    assert ("duplicate", "a") in {(f.kind, f.subject) for f in read_checkpoint_index(ID).findings}


def test_a_hub_id_generates(hub: Hub, tiny: Path, tmp_path: Path):
    """Random weights speak through the published tokenizer; the real ones as from the folder."""
    hub.add(ID, tiny)
    params = SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True)
    (random,) = LLM(ID, load="dummy").generate(["he"], params)
    assert len(random.outputs[0].token_ids) == 4
    assert "model.safetensors" not in downloaded(tmp_path)
    (found,), (expected,) = (LLM(model).generate(["he"], params) for model in (ID, tiny))
    assert found.outputs[0].token_ids == expected.outputs[0].token_ids
