"""`conf` is an ordinary Hydra config group: Hydra composes every shipped conf to what we do."""

from __future__ import annotations

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
    assert OmegaConf.to_container(by_hydra.conf, resolve=False) == ours
