"""`Detokenizer`: what it gives out is final and adds up to the whole decoded text."""

from __future__ import annotations

import random
from itertools import groupby
from pathlib import Path

import pytest
from tokenizer_builders import BACKENDS, TEXTS, save, unigram
from tokenizers import AddedToken, decoders, models
from tokenizers import Tokenizer as Backend

from assembler.tokenizer import Detokenizer, Tokenizer
from assembler.tokenizer.byte_fallback import byte_fallback_values
from assembler.tokenizer.cleanup import SpaceCleaner, clean_up_spaces
from assembler.tokenizer.parts import TokenizerParts


@pytest.fixture(params=BACKENDS)
def tokenizer(request: pytest.FixtureRequest, folders: dict[str, Path]) -> Tokenizer:
    return Tokenizer.from_folder(folders[request.param])


def stream(detokenizer: Detokenizer, steps: list[int] | list[list[int]]) -> list[str]:
    return [*(detokenizer.push(step) for step in steps), detokenizer.finish()]


def made_of(backend: Backend) -> Tokenizer:
    return Tokenizer(TokenizerParts(backend, {}, frozenset(), {}))


def readable(tokenizer: Tokenizer, ids: list[int], skip: bool) -> str:
    """What the library decodes if broken UTF-8 is kept apart from the bytes before it.

    A mark between them ends their run; it is taken out of the text again.
    """
    values = byte_fallback_values(tokenizer.backend)
    backend = Backend.from_str(tokenizer.backend.to_str())
    left_out = tokenizer.special_ids if skip else ()
    known = [i for i in ids if i not in left_out and backend.id_to_token(i) is not None]
    backend.add_tokens([AddedToken("¦", normalized=False)])
    marked: list[int] = []
    for is_run, group in groupby(known, key=values.__contains__):
        run = list(group)
        if is_run:
            try:
                bytes(values[i] for i in run).decode()
            except UnicodeDecodeError as error:
                run.insert(error.start, backend.token_to_id("¦"))
        marked += run
    return backend.decode(marked, skip_special_tokens=False).replace("¦", "")


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
        expected = readable(tokenizer, ids, skip)
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


def test_a_character_of_byte_tokens_goes_out_when_it_is_complete(byte_fallback: Tokenizer) -> None:
    text = "é\n中😀\n"
    ids = in_bytes(text.encode())
    pieces = stream(byte_fallback.detokenizer(), [*ids, 2])
    at = [len(text[: n + 1].encode()) - 1 for n in range(len(text))]  # their last bytes
    assert {n: piece for n, piece in enumerate(pieces) if piece} == {
        **dict(zip(at, text, strict=True)),
        len(ids): "a",
    }
    assert "".join(pieces) == byte_fallback.decode([*ids, 2])


def test_bytes_of_valid_runs_are_decoded_as_by_the_library(byte_fallback: Tokenizer) -> None:
    rng = random.Random(4)
    for _ in range(300):
        parts = [rng.choice(["a", " ", "é", "\n", "中", "😀", [1], [2], [3]]) for _ in range(12)]
        ids = [i for p in parts for i in (in_bytes(p.encode()) if isinstance(p, str) else p)]
        pieces = stream(byte_fallback.detokenizer(), ids)
        assert "".join(pieces) == byte_fallback.decode(ids), ids
        assert pieces[-1] == ""  # nothing of it has waited


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ("中".encode() + b"\xff", "中\ufffd"),
        ("中é".encode()[:-1], "中\ufffd"),  # where max_tokens cuts an answer
        (b"\n\xe4A\n", "\n\ufffd\ufffd\ufffd"),
        (b"\xff\n", "\ufffd\ufffd"),
        (b"\xed\xa0\x80", "\ufffd\ufffd\ufffd"),  # half a surrogate pair
    ],
)
def test_a_bad_byte_spoils_what_is_left_of_its_run(
    byte_fallback: Tokenizer, data: bytes, text: str
) -> None:
    """The library spoils what came before it too, which has gone out here."""
    for steps in ([*in_bytes(data), 2, 3], [[*in_bytes(data), 2, 3]]):
        assert "".join(stream(byte_fallback.detokenizer(), steps)) == text + "a a"
    assert "".join(stream(byte_fallback.detokenizer(), in_bytes(data))) == text
    assert byte_fallback.decode(in_bytes(data)) == "\ufffd" * len(data)


@pytest.mark.parametrize(
    "ids",
    [
        [260, 3, 260, 3, 3],  # special tokens left out do not eat the space after them
        [1, 1, 1, 2],
        [3, 260, 1, 3],
        [9999, *in_bytes(b"\xe4"), 9999, *in_bytes(b"\xb8\xad"), 3],  # ids without a token
        in_bytes("😀".encode())[:-1],
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
