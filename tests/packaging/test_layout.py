"""Four relative links make the top-level folders parts of the one package `assembler`."""

from __future__ import annotations

import os

import pytest
from python_imports import PACKAGE_FOLDERS, ROOT, imports_of

LINKS = ("blocks", "kernels", "conf", "weight_maps")


@pytest.mark.parametrize("name", LINKS)
def test_links_are_relative(name):
    link = ROOT / "assembler" / name
    assert link.is_symlink()
    assert os.readlink(link) == f"../{name}"
    assert link.resolve() == ROOT / name
    assert link.is_dir()


@pytest.mark.parametrize("folder", ["blocks", "kernels"])
def test_top_level_folders_are_no_packages(folder):
    assert list((ROOT / folder).rglob("__init__.py")) == []


def test_nobody_imports_the_top_level_folders():
    everything = imports_of(*PACKAGE_FOLDERS, "tests", "benchmarks")
    wrong = [use for use in everything if use.top in (*LINKS, "tests", "benchmarks")]
    assert [str(use) for use in wrong] == []
