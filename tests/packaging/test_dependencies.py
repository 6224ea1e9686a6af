"""pyproject.toml declares what is imported, and nothing else."""

from __future__ import annotations

import re

import pytest
from python_imports import PACKAGE_FOLDERS, ROOT, third_party

tomllib = pytest.importorskip("tomllib", reason="part of Python since 3.11")

# Distributions whose import name is another one than their own.
IMPORT_NAMES = {
    "hydra_core": "hydra",
    "markdown_it_py": "markdown_it",
    "pyyaml": "yaml",
    "pytest_xdist": "xdist",
}
# Used by the tests and by .ci/run without an import: run as `python -m`, by pytest, by transformers
# or by the package itself.
TOOLS = {"build", "ruff", "accelerate", "xdist", "matplotlib"}
# Built with a CUDA compiler; the tests put a stand-in with its signatures in its place.
ON_GPUS = {"flash_attn"}


def import_names(requirements: list[str]) -> set[str]:
    """The modules that requirements such as "hydra-core>=1.3; python_version > '3'" bring."""
    names = (re.match(r"[\w.-]+", text)[0].replace("-", "_").lower() for text in requirements)
    return {IMPORT_NAMES.get(name, name) for name in names}


@pytest.fixture(scope="module")
def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


@pytest.fixture(scope="module")
def core(project):
    return import_names(project["dependencies"])


@pytest.fixture(scope="module")
def extras(project):
    declared = project["optional-dependencies"]
    return {name: import_names(requirements) for name, requirements in declared.items()}


def users_extras(extras):
    """What users may leave out."""
    developers = ("test", "docs")
    return set().union(*(names for extra, names in extras.items() if extra not in developers))


def test_the_package_imports_what_it_declares(core, extras):
    declared = core | users_extras(extras)
    found = third_party(*PACKAGE_FOLDERS)
    undeclared = [use for name, uses in found.items() if name not in declared for use in uses]
    assert [str(use) for use in undeclared] == []
    assert declared - set(found) == set(), "declared, but imported nowhere"


def test_extras_are_imported_when_needed(core):
    found = third_party(*PACKAGE_FOLDERS)
    optional = [use for name, uses in found.items() if name not in core for use in uses]
    assert optional, "no extra is imported at all"
    assert [str(use) for use in optional if not use.in_function] == []


def test_the_tests_import_what_the_test_extra_declares(core, extras):
    found = set(third_party("tests"))
    assert found - core - extras["test"] == set()
    assert extras["test"] - TOOLS - found == set(), "declared, but imported nowhere"


def test_the_test_extra_brings_what_users_may_leave_out(extras):
    assert users_extras(extras) - ON_GPUS <= extras["test"]
