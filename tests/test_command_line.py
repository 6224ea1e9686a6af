"""The key=value command line that all commands share."""

from __future__ import annotations

import gc
import io
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field

from assembler.command_line import (
    Verbatim,
    describe_options,
    parse_arguments,
    run_command,
)
from assembler.errors import OptionError, SpecError
from assembler.weights.collector import collector_paused


class What(BaseModel):
    """Options of one model."""

    prompt: Annotated[str | None, Verbatim()] = Field(None, description="the text")
    where: str | None = Field(None, description="a folder; null: none")
    mode: bool | Literal["auto"] = Field("auto", description="yes, no or auto")


class How(BaseModel):
    """Options of another."""

    tokens: int = Field(64, description="how many")
    heat: float = Field(1.0, description="how hot")
    limit: int | None = Field(None, description="at most")
    stop: tuple[str, ...] = Field((), description="ends of the text")
    ids: tuple[int, ...] = Field((), description="ids that end it")
    rules: str | tuple[str, ...] = Field("all", description="all, none or names")
    needed: str = Field(description="must be given")


def _values(*argv: str) -> dict[str, Any]:
    what, how = parse_arguments(argv, What, How).values
    return {**what, **how}


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("prompt=Hello, world!", "Hello, world!"),
        ("prompt=a=b", "a=b"),
        ("prompt=", ""),
        ("prompt=null", "null"),
        ("prompt=True", "True"),
        ("prompt=123", "123"),
        ("prompt='quoted' \"twice\"", "'quoted' \"twice\""),
        ("prompt=${oc.env:HOME} # & [1, {2: x}] \\", "${oc.env:HOME} # & [1, {2: x}] \\"),
        ("prompt=日本語 été\n\ttwo lines", "日本語 été\n\ttwo lines"),
        ("prompt= spaces ", " spaces "),
        ("where=a/b c", "a/b c"),
        ("where=null", None),
        ("where=12", "12"),
        ("mode=true", True),
        ("mode=False", False),
        ("mode=auto", "auto"),
        ("tokens=3", 3),
        ("tokens=-3", -3),
        ("heat=0", 0),
        ("heat=0.5", 0.5),
        ("heat=1e-3", 1e-3),
        ("limit=null", None),
        ("limit=7", 7),
        ("stop=[a,b]", ["a", "b"]),
        ("stop=[a, 'b, c']", ["a", "b, c"]),
        ("stop=a, b", ("a, b",)),
        ("ids=[1,2]", [1, 2]),
        ("ids=3", (3,)),
        ("rules=none", "none"),
        ("rules=[a,b]", ["a", "b"]),
    ],
)
def test_values(argument: str, value: Any) -> None:
    given = _values(argument)[argument.partition("=")[0]]
    assert given == value and type(given) is type(value)


def test_each_model_gets_its_own() -> None:
    arguments = parse_arguments(
        ["tokens=3", "prompt=x", "conf.layers.count=2", "~conf.norm", "+conf.a=1", "++conf.b=2"],
        What,
        How,
    )
    assert arguments.values == ({"prompt": "x"}, {"tokens": 3})
    assert arguments.overrides == ("conf.layers.count=2", "~conf.norm", "+conf.a=1", "++conf.b=2")
    assert arguments.search_path == ()


def test_search_path(tmp_path: Path) -> None:
    for text, path in (
        (f"[{tmp_path}]", (f"{tmp_path}",)),
        (f"{tmp_path}", (f"{tmp_path}",)),
        (f"[file://{tmp_path},{tmp_path}]", (f"file://{tmp_path}", f"{tmp_path}")),
        ("[]", ()),
    ):
        assert parse_arguments([f"hydra.searchpath={text}"], What).search_path == path
    with pytest.raises(OptionError, match=r"hydra.searchpath names '/nowhere', which is not a"):
        parse_arguments(["hydra.searchpath=[/nowhere]"], What)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("promt=x", "unknown option 'promt'. Did you mean 'prompt'? --help lists all of them"),
        ("--prompt=x", "unknown option '--prompt'. Did you mean 'prompt'?"),
        ("hydra.serchpath=x", "unknown option 'hydra.serchpath'. Did you mean 'hydra.searchpath'?"),
        ("xyz=1", "unknown option 'xyz'. --help lists all of them"),
        ("hello", "'hello' is no key=value pair; --help lists the keys"),
        ("tokens=((", "tokens=((: '((' is not a value Hydra's grammar knows"),
    ],
)
def test_what_is_not_understood(argument: str, message: str) -> None:
    with pytest.raises(OptionError) as caught:
        parse_arguments([argument], What, How)
    assert str(caught.value).startswith(message)


def test_all_that_is_wrong_is_one_error() -> None:
    with pytest.raises(OptionError) as caught:
        parse_arguments(["promt=x", "hello", "tokens=1", "tokens=2", "heat=(("], What, How)
    assert [line.split()[0] for line in str(caught.value).splitlines()] == [
        "unknown",
        "'hello'",
        "'tokens'",
        "heat=((:",
    ]


def test_the_help_of_options() -> None:
    assert describe_options(How, leave_out=("ids", "heat")).splitlines() == [
        "  tokens=64        how many",
        "  limit=null       at most",
        "  stop=[]          ends of the text",
        "  rules=all        all, none or names",
        "  needed=required  must be given",
    ]


class More(What):
    """Options that come with others."""

    speed: float = Field(2.0, description="own keys come first")


def test_own_keys_come_first() -> None:
    keys = [line.split("=")[0].strip() for line in describe_options(More).splitlines()]
    assert keys == ["speed", "prompt", "where", "mode"]


def _run(main: Any, capsys: pytest.CaptureFixture[str]) -> tuple[Any, str, str]:
    with pytest.raises(SystemExit) as end:
        run_command(main, ["a=1"])
    out, err = capsys.readouterr()
    return end.value.code, out, err


def test_a_command_s_status_is_the_process_s(capsys: pytest.CaptureFixture[str]) -> None:
    def main(argv: list[str]) -> int:
        print(argv)
        return 1

    assert _run(main, capsys) == (1, "['a=1']\n", "")


def test_a_user_s_mistake_is_a_message(capsys: pytest.CaptureFixture[str]) -> None:
    def main(argv: list[str]) -> int:
        raise SpecError("conf/my.yaml:1: wrong\nconf/my.yaml:2: wrong too")

    assert _run(main, capsys) == (
        2,
        "",
        "error: conf/my.yaml:1: wrong\nconf/my.yaml:2: wrong too\n",
    )


def test_an_interrupt(capsys: pytest.CaptureFixture[str]) -> None:
    def main(argv: list[str]) -> int:
        raise KeyboardInterrupt

    assert _run(main, capsys) == (130, "", "interrupted\n")


def test_a_reader_that_went_away(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = io.StringIO()
    monkeypatch.setattr("sys.stderr", closed)

    def main(argv: list[str]) -> int:
        raise BrokenPipeError

    with pytest.raises(SystemExit) as end:
        run_command(main, [])
    assert end.value.code == 141


def test_a_bug_is_a_traceback() -> None:
    def main(argv: list[str]) -> int:
        raise ZeroDivisionError("ours")

    with pytest.raises(ZeroDivisionError):
        run_command(main, [])


def test_none_is_pythons_word_for_null():
    assert _values("limit=None", "needed=x")["limit"] is None


def test_a_field_of_the_model_is_found_below_conf():
    with pytest.raises(OptionError, match=r"begin with conf\.: conf\.layers\.count"):
        parse_arguments(["layers.count=2"], What, How)


def test_the_collector_is_on_again_after_a_pause():
    with pytest.raises(ZeroDivisionError), collector_paused():
        assert not gc.isenabled()
        raise ZeroDivisionError
    assert gc.isenabled()


@pytest.mark.parametrize(("loaded", "frozen"), [("json", True), ("triton", False)])
def test_a_process_ends_without_a_search_for_garbage(loaded, frozen):
    script = f"""
import atexit, gc, {loaded}
atexit.register(lambda: print(gc.get_freeze_count() > 1000))  # runs after what comes later
from assembler.command_line import run_command
run_command(lambda argv: 3)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (3, f"{frozen}\n", "")
