"""Less work in the last layer: rows that nobody wants logits of leave as soon as they can.

Once the last keys and values are stored, a token matters to others no more. What follows is done
for the wanted rows only: of a prompt's last layer that spares all tokens but one the attention,
the projection after it and the feed-forward.
"""

from __future__ import annotations

from assembler.engine.lowering.program import Program
from assembler.kernels.cpu_program import Instruction, Opcode

# Those that know which token a row is, or do not ask.
_OF_ANY_ROWS = frozenset(
    {
        Opcode.LINEAR,
        Opcode.RMS_NORM,
        Opcode.LAYER_NORM,
        Opcode.ADD,
        Opcode.MULTIPLY,
        Opcode.SCALE,
        Opcode.SOFTCAP,
        Opcode.ACTIVATE,
        Opcode.XIELU,
        Opcode.GATE,
        Opcode.CLIP,
        Opcode.ATTEND,
        Opcode.SCORE_EXPERTS,
        Opcode.CHOOSE_EXPERTS,
        Opcode.GROUP_BY_EXPERT,
        Opcode.GATHER,
        Opcode.EXPERT_LINEAR,
        Opcode.COMBINE,
    }
)


def keep_wanted_rows(program: Program) -> None:
    """Move the choice of rows up to the last store, if all that is in between can follow."""
    code = program.instructions
    stores = [number for number, one in enumerate(code) if one.opcode == Opcode.STORE]
    choices = [number for number, one in enumerate(code) if one.opcode == Opcode.ROWS]
    if not stores or len(choices) != 1 or any(call.before > stores[-1] for call in program.calls):
        return
    border, choice = stores[-1] + 1, choices[0]
    moved, after = code[border:choice], code[choice + 1 :]
    if any(one.opcode not in _OF_ANY_ROWS for one in moved):
        return
    widths = {place: _width(code[:border], place) for place in _read_first([*moved, code[choice]])}
    if None in widths.values():
        return
    places, gathers = {}, []
    for place, width in widths.items():
        places[place] = program.grow(program.max_rows * width)
        gathers.append(
            Instruction(
                opcode=Opcode.ROWS, input=place, out=places[place], k=width, n=width,
                sampled=1, times=1, chain=1,
            )
        )  # fmt: skip
    for one in moved:
        one.sampled = 1
        for name in ("input", "input2", "out", "out2"):
            setattr(one, name, places.get(getattr(one, name), getattr(one, name)))
    chosen = code[choice]
    for one in after:
        if one.input == chosen.out:
            one.input = places.get(chosen.input, chosen.input)
    program.instructions[border:] = [*gathers, *moved, *after]


def _read_first(code: list[Instruction]) -> list[int]:
    """The places that are read before anything is written there."""
    written: set[int] = set()
    found: dict[int, None] = {}
    for one in code:
        for place in (one.input, one.input2):
            if place >= 0 and place not in written:
                found[place] = None
        written |= {one.out, one.out2}
    return list(found)


def _width(code: list[Instruction], place: int) -> int | None:
    """The width of the rows that were written there last; None: no instruction wrote them."""
    for one in reversed(code):
        if one.times == 1 and place == one.out:
            return one.n
        if one.times == 1 and place == one.out2:
            return one.k
    return None
