"""Page lists as rows of an array that is kept from step to step."""

import random

import numpy as np

from assembler.engine.page_table import PageTable


def padded(lists):
    width = max(map(len, lists))
    return [pages + [0] * (width - len(pages)) for pages in lists]


def test_rows_are_the_lists_of_the_step_whatever_came_before():
    """Sequences come, go, grow, change places, sit out a step and give all their pages up."""
    rng = random.Random(5)
    table, running = PageTable(), []
    for _ in range(400):
        while len(running) < rng.randint(1, 9):
            running.append([rng.randrange(1, 99)])
        if rng.random() < 0.3:
            del running[rng.randrange(len(running)) :]
            running = running or [[7, 8]]
        if rng.random() < 0.2:
            rng.shuffle(running)
        if rng.random() < 0.2:
            running[-1] = [rng.randrange(1, 99) for _ in range(rng.randint(1, 5))]
        for pages in running:
            if rng.random() < 0.2:
                pages += [rng.randrange(1, 99) for _ in range(rng.randint(1, 6))]
        step = [pages for pages in running if rng.random() < 0.9] or running
        table.update(step)
        assert table.rows().tolist() == padded(step)
        assert table.rows().dtype == np.int32


def test_it_says_whether_anything_is_new():
    table, first, second = PageTable(), [3, 1], [5]
    assert table.update([first, second])
    assert not table.update([first, second])
    second.append(9)
    assert table.update([first, second])
    assert not table.update([first, second])
    assert table.update([second, first]), "other places"
    assert table.update([second]), "one has gone"
    assert not table.update([second])
    assert table.update([[5, 9]]), "another list of the same pages"


def test_only_what_is_new_is_written():
    """A page that changes in place is not looked at again: lists grow, or are replaced."""
    table, pages = PageTable(), [3, 1]
    table.update([pages])
    pages[0] = 77
    pages.append(4)
    table.update([pages])
    assert table.rows().tolist() == [[3, 1, 4]]


def test_rows_are_copies():
    table, pages = PageTable(), [3]
    table.update([pages])
    before = table.rows()
    pages.append(8)
    table.update([pages])
    assert before.tolist() == [[3]] and table.rows().tolist() == [[3, 8]]
