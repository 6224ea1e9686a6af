"""Where the norms of a layer stand, from what they are called: before or behind its branches."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from assembler.drafting.inventory import Tensor
from assembler.drafting.vocabulary import NORM_PLACES


def name_norms(norms: Iterable[Tensor]) -> tuple[dict[str, list[Tensor]], bool]:
    """The norms by their names here, and whether they stand behind the branches only.

    `post_attention_layernorm` is the name of the norm *before* the MLP since Llama; beside norms
    that say so themselves, or without a norm before attention, it means what it says.
    """
    by_place: dict[str, list[Tensor]] = defaultdict(list)
    for tensor in norms:
        last = tensor.module.rpartition(".")[2]
        place = next((place for place, words in NORM_PLACES if words.search(last)), "before_attn")
        by_place[place].append(tensor)
    after = "after_mlp" in by_place and not by_place.keys() & {"before_attn", "before_mlp"}
    names = {
        "before_attn": "attn_norm",
        "before_mlp": "mlp_norm",
        "between": "mlp_norm",
        "after_attn": "attn_norm" if after else "post_attn_norm",
        "after_mlp": "mlp_norm" if after else "post_mlp_norm",
    }
    if "before_mlp" in by_place:
        names["between"] = "post_attn_norm"
    elif after:
        names["between"] = "post_attn_norm" if "after_attn" in by_place else "attn_norm"
    found: dict[str, list[Tensor]] = defaultdict(list)
    for place, tensors in by_place.items():
        found[names[place]] += tensors
    return found, after
