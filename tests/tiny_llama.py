"""A tiny random Llama that speaks bytes, saved as the hub or as llama.cpp would have it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gguf
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

transformers.utils.logging.disable_progress_bar()

HEADS, KV_HEADS = 4, 2
MAX_LENGTH = 256
SIZES: dict[str, Any] = {
    "vocab_size": 260,
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "max_position_embeddings": MAX_LENGTH,
    "rms_norm_eps": 1e-3,
    "tie_word_embeddings": False,
}
# The words of the vocabulary: all bytes, one merge ("he"), ChatML's marks.
LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
VOCABULARY = (*LETTERS, "he", *SPECIAL)
EOS = VOCABULARY.index("<|im_end|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

Weights = dict[str, torch.Tensor]


def save_llama(folder: Path, *, tokenizer: bool = True, **knobs: Any) -> LlamaForCausalLM:
    """Save a random model (config.json, model.safetensors) and its tokenizer; return the model."""
    config = LlamaConfig(**{**SIZES, "eos_token_id": EOS, "bos_token_id": None, **knobs})
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if "norm" in name else 0.0, 0.2)
    model.save_pretrained(folder)
    if tokenizer:
        save_tokenizer(folder)
    return model


def save_tokenizer(folder: Path) -> None:
    """tokenizer.json, tokenizer_config.json and a ChatML template."""
    ids = {word: number for number, word in enumerate(VOCABULARY) if word not in SPECIAL}
    backend = Tokenizer(models.BPE(ids, [("h", "e")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(list(SPECIAL))
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>"}))
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)


def chatml(user: str, system: str | None = None) -> str:
    """What the model reads for a question, written out."""
    start = "" if system is None else f"<|im_start|>system\n{system}<|im_end|>\n"
    return f"{start}<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n"


def change_tensors(folder: Path, change: Callable[[Weights], object]) -> None:
    """Apply `change` to the tensors of model.safetensors."""
    file = folder / "model.safetensors"
    weights = load_file(file)
    change(weights)
    weights = {name: tensor.contiguous() for name, tensor in weights.items()}
    save_file(weights, file, metadata={"format": "pt"})


def change_config(folder: Path, **fields: Any) -> None:
    """Set fields of config.json; None takes one out."""
    file = folder / "config.json"
    config = {**json.loads(file.read_text()), **fields}
    file.write_text(
        json.dumps({name: value for name, value in config.items() if value is not None})
    )


@torch.inference_mode()
def greedy(model: LlamaForCausalLM, prompt_ids: Sequence[int], count: int) -> list[int]:
    """The `count` token ids that transformers generates (fewer if it meets the end)."""
    ids = torch.tensor([list(prompt_ids)])
    mask = torch.ones_like(ids)
    out = model.generate(ids, attention_mask=mask, max_new_tokens=count, do_sample=False)
    return out[0, ids.shape[1] :].tolist()


def write_gguf(file: Path, model: LlamaForCausalLM) -> Path:
    """The model and its tokenizer as llama.cpp's converter writes them, in float32."""
    config, writer = model.config, gguf.GGUFWriter(file, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(list(VOCABULARY))
    writer.add_token_types([3 if word in SPECIAL else 1 for word in VOCABULARY])
    writer.add_token_merges(["h e"])
    writer.add_eos_token_id(EOS)
    writer.add_chat_template(CHAT_TEMPLATE)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if "q_proj" in name or "k_proj" in name:
            tensor = _interleaved(tensor, HEADS if "q_proj" in name else KV_HEADS)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _interleaved(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows as llama.cpp rotates them: the two halves of each head in turns."""
    by_head = tensor.view(heads, 2, -1, tensor.shape[-1])
    return by_head.transpose(1, 2).reshape(tensor.shape).contiguous()
