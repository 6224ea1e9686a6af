"""`Detokenizer`: what it gives out is final and adds up to the whole decoded text."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from tokenizer_builders import BACKENDS, TEXTS, save, unigram
from tokenizers import AddedToken, decoders, models
from tokenizers import Tokenizer as Backend

from assembler.tokenizer import Detokenizer, Tokenizer
from assembler.tokenizer.cleanup import SpaceCleaner, clean_up_spaces
from assembler.tokenizer.parts import TokenizerParts


@pytest.fixture(params=BACKENDS)
def tokenizer(request: pytest.FixtureRequest, folders: dict[str, Path]) -> Tokenizer:
    return Tokenizer.from_folder(folders[request.param])


def stream(detokenizer: Detokenizer, steps: list[int] | list[list[int]]) -> list[str]:
    return [*(detokenizer.push(step) for step in steps), detokenizer.finish()]


def made_of(backend: Backend) -> Tokenizer:
    return Tokenizer(TokenizerParts(backend, {}, frozenset(), {}))


@pytest.mark.parametrize("skip", [True, False])
def test_token_by_token_equals_all_at_once(tokenizer: Tokenizer, skip: bool) -> None:
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert "".join(stream(tokenizer.detokenizer(skip), ids)) == tokenizer.decode(ids, skip)


@pytest.mark.parametrize("skip", [True, False])
def test_random_ids_in_random_steps(tokenizer: Tokenizer, skip: bool) -> None:
    rng = random.Random(0)
    for _ in range(400):
        ids = [rng.randrange(tokenizer.vocab_size + 3) for _ in range(rng.randint(1, 30))]
        steps, rest = [], ids
        while rest:
            size = rng.randint(0, 4)
            steps.append(rest[:size])
            rest = rest[size:]
        expected = tokenizer.decode(ids, skip)
        assert "".join(stream(tokenizer.detokenizer(skip), steps)) == expected, steps


def test_long_text_of_many_scripts(tokenizer: Tokenizer) -> None:
    text = "\n".join(TEXTS * 4)
    ids = tokenizer.encode(text)
    pieces = stream(tokenizer.detokenizer(), ids)
    assert "".join(pieces) == tokenizer.decode(ids)
    assert max(map(len, pieces)) < 30  # it streams, rather than all at the end


def test_a_character_spread_over_tokens_comes_whole(folders: dict[str, Path]) -> None:
    tokenizer = Tokenizer.from_folder(folders["smollm"])
    text = "a 😀 b"
    pieces = stream(tokenizer.detokenizer(), tokenizer.encode(text))
    assert "".join(pieces) == text
    assert len(pieces) > 7 and "😀" in pieces
    assert not any("\ufffd" in piece for piece in pieces)


def test_text_before_an_unfinished_character_goes_out(folders: dict[str, Path]) -> None:
    tokenizer = Tokenizer.from_folder(folders["smollm"])
    ids = tokenizer.encode("hello 😀", add_special_tokens=False)
    detokenizer = tokenizer.detokenizer()
    assert detokenizer.push(ids[:-1]) == "hello "
    assert detokenizer.push(ids[-1]) == "😀"


def test_an_unfinished_end_is_given_by_finish(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("the 𒀀")[:-1]
    pieces = stream(tokenizer.detokenizer(), ids)
    assert "".join(pieces) == tokenizer.decode(ids)


@pytest.fixture(scope="module")
def byte_fallback() -> Tokenizer:
    """Tokens ▁ a ▁a, the 256 bytes, and the special token <s>."""
    tokens = ["<unk>", "▁", "a", "▁a", *(f"<0x{byte:02X}>" for byte in range(256))]
    vocab = {token: i for i, token in enumerate(tokens)}
    backend = Backend(models.BPE(vocab, [("▁", "a")], unk_token="<unk>", byte_fallback=True))
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    backend.add_special_tokens([AddedToken("<s>")])
    return made_of(backend)


def in_bytes(data: bytes) -> list[int]:
    return [4 + byte for byte in data]


def test_a_run_of_byte_tokens_waits_for_its_end(byte_fallback: Tokenizer) -> None:
    detokenizer = byte_fallback.detokenizer()
    assert [detokenizer.push(i) for i in in_bytes("中".encode())] == ["", "", ""]
    assert detokenizer.push(2) == "中a"


def test_one_bad_byte_spoils_the_whole_run(byte_fallback: Tokenizer) -> None:
    """What `tokenizers` decodes: had 中 been given out at once, this could not be had any more."""
    ids = [*in_bytes("中".encode() + b"\xff"), 2]
    assert byte_fallback.decode(ids) == "\ufffd" * 4 + "a"
    assert "".join(stream(byte_fallback.detokenizer(), ids)) == byte_fallback.decode(ids)


@pytest.mark.parametrize(
    "ids",
    [
        [260, 3, 260, 3, 3],  # special tokens left out do not eat the space after them
        [1, 1, 1, 2],
        [3, 260, 1, 3],
        [9999, *in_bytes(b"\xe4"), 9999, *in_bytes(b"\xb8\xad"), 3],  # ids without a token
        in_bytes("é😀".encode())[:-1],
    ],
)
@pytest.mark.parametrize("skip", [True, False])
def test_sentencepiece_spaces(byte_fallback: Tokenizer, ids: list[int], skip: bool) -> None:
    pieces = stream(byte_fallback.detokenizer(skip), ids)
    assert "".join(pieces) == byte_fallback.decode(ids, skip)


@pytest.mark.parametrize(
    "decoder",
    [decoders.WordPiece(), decoders.BPEDecoder(suffix="</w>"), decoders.Metaspace(), None],
)
def test_other_decoders(decoder: decoders.Decoder | None) -> None:
    tokens = ["<unk>", "a", "##b", "c</w>", "▁", "▁d", "▁▁", ".", ""]
    backend = Backend(models.WordLevel({t: i for i, t in enumerate(tokens)}, unk_token="<unk>"))
    if decoder is not None:
        backend.decoder = decoder
    tokenizer, rng = made_of(backend), random.Random(1)
    for _ in range(300):
        ids = [rng.randrange(len(tokens)) for _ in range(rng.randint(1, 8))]
        assert "".join(stream(tokenizer.detokenizer(), ids)) == tokenizer.decode(ids), ids


def test_with_space_cleanup(tmp_path: Path) -> None:
    folder = save(unigram(), tmp_path, clean_up_tokenization_spaces=True)
    tokenizer = Tokenizer.from_folder(folder)
    ids = tokenizer.encode("the lazy dog ' s friend , who doesn 't mind ! ? . and ' n't")
    pieces = stream(tokenizer.detokenizer(), ids)
    assert "".join(pieces) == tokenizer.decode(ids) != ""
    assert " ," not in "".join(pieces)


def test_space_cleanup_in_pieces_equals_space_cleanup_at_once() -> None:
    rng = random.Random(2)
    for _ in range(5000):
        words = [" ", "'", ".", ",", "n't", "'s", "a", "re", "  ", " ' "]
        pieces = rng.choices(words, k=rng.randint(1, 12))
        cleaner = SpaceCleaner()
        out = "".join([*map(cleaner.push, pieces), cleaner.finish()])
        assert out == clean_up_spaces("".join(pieces)), pieces
