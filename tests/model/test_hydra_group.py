"""`conf` is an ordinary Hydra config group: Hydra composes every shipped conf to what we do."""

from __future__ import annotations

from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from assembler.model.compose import _inherited
from assembler.model.conf_files import PACKAGE_ROOT, ancestry, conf_names, find_conf

ROOTS = (PACKAGE_ROOT,)


@pytest.mark.parametrize("name", conf_names(ROOTS))
def test_hydra_composes_the_same(name):
    with initialize_config_dir(config_dir=str(PACKAGE_ROOT), version_base="1.3"):
        by_hydra = compose(overrides=[f"+conf={name}"])
    ours = _inherited(ancestry(find_conf(name, ROOTS), ROOTS))
    assert _without_replaced(OmegaConf.to_container(by_hydra.conf, resolve=False), ours) == ours


def _without_replaced(by_hydra: Any, ours: Any) -> Any:
    """Hydra's result without the fields of blocks that another block has replaced.

    The one rule that Hydra does not have: it would leave them to the new block.
    """
    if not isinstance(by_hydra, dict) or not isinstance(ours, dict):
        return by_hydra
    kept = ours if "block" in ours else by_hydra
    return {k: _without_replaced(by_hydra[k], ours.get(k)) for k in kept if k in by_hydra}
