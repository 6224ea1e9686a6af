"""Which runs a command line stands for: Hydra's grammar, held against Hydra's own sweeper."""

import pytest
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser

from assembler.errors import OptionError
from assembler.multirun.sweeps import expand_sweeps


@pytest.mark.parametrize(
    "argv",
    [
        ["tp=1,2,4", "gpu=24GB,80GiB"],
        ["conf.layers.count=range(2,5)", "dtype=float32"],
        ["a=choice(x,y)", "b=1,2", "c=3"],
        ["++conf.layers.count=1,2"],
        ["tp=[1,2],[4]"],
        ["x='a,b','c'"],
    ],
)
def test_the_runs_are_those_of_hydra(argv: list[str]):
    parsed = OverridesParser.create().parse_overrides(argv)
    [batch] = BasicSweeper.split_arguments(parsed, max_batch_size=None)
    wanted = [[text.replace("'", "") for text in run] for run in batch]
    assert [list(run.argv) for run in expand_sweeps(argv)] == wanted


def test_what_is_swept_is_known_by_run():
    runs = expand_sweeps(["tp=1,2", "checkpoint=/a/b", "gpu=1GB,2GB"])
    assert [run.values for run in runs][1] == {"tp": "1", "gpu": "2GB"}
    assert runs[3].argv == ("tp=2", "checkpoint=/a/b", "gpu=2GB")


def test_texts_are_not_swept():
    runs = expand_sweeps(["prompt=One, two = three", "tp=1,2"], verbatim=["prompt"])
    assert [run.argv[0] for run in runs] == ["prompt=One, two = three"] * 2
    assert expand_sweeps(["stop='a,b'", "tp=1,2"])[0].argv[0] == "stop='a,b'"


@pytest.mark.parametrize(
    ("argv", "message"),
    [(["tp=1"], "give a key several"), ([], "give a key several"), (["conf=glob(q*)"], "glob")],
)
def test_nothing_to_sweep(argv: list[str], message: str):
    with pytest.raises(OptionError, match=message):
        expand_sweeps(argv)
