"""Philox against the published vectors of its authors, and the numbers made of it."""

import numpy as np
import pytest

from assembler.engine.random_numbers import philox, uniforms

# kat_vectors of Random123: philox4x32, 10 rounds: counter, key, result.
VECTORS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000",
     "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff",
     "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0",
     "d16cfe09 94fdcceb 5001e420 24126ea1"),
]  # fmt: skip


def words(text):
    return np.array([[int(word, 16)] for word in text.split()], dtype=np.uint64)


@pytest.mark.parametrize(("counter", "key", "expected"), VECTORS)
def test_philox_gives_the_published_words(counter, key, expected):
    assert (philox(words(counter), words(key)) == words(expected)).all()


def test_numbers_are_uniform():
    count = 100_000
    numbers = np.array(uniforms([7] * count, [0] * count, range(count)))
    assert ((numbers >= 0) & (numbers < 1)).all() and len(set(numbers)) == count
    buckets = np.bincount((numbers * 50).astype(int), minlength=50)
    expected = count / 50
    chi_squared = ((buckets - expected) ** 2 / expected).sum()
    assert chi_squared < 94.4  # 49 degrees of freedom: 1 in 10,000 is above


@pytest.mark.parametrize("other", [(8, 0, 0), (7, 1, 0), (7, 0, 1), (7 + 2**32, 0, 0)])
def test_seed_stream_and_position_each_give_other_numbers(other):
    steps = range(2000)

    def series(seed, stream, position):
        moved = [position + 10_000 * position + step for step in steps]
        return np.array(uniforms([seed] * 2000, [stream] * 2000, moved))

    first, second = series(7, 0, 0), series(*other)
    assert abs(np.corrcoef(first, second)[0, 1]) < 4 / np.sqrt(2000)


def test_a_number_does_not_depend_on_those_beside_it():
    seeds, streams, positions = [3, 2**63 - 1, 0], [0, 5, 2], [9, 0, 70_000]
    together = uniforms(seeds, streams, positions)
    alone = [uniforms([a], [b], [c])[0] for a, b, c in zip(seeds, streams, positions, strict=True)]
    assert together == alone
