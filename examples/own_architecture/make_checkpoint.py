"""Saves a small Kestrel with random weights, as a training run would: into ./checkpoint."""

import shutil

import torch
import transformers
from modeling_kestrel import KestrelConfig, KestrelForCausalLM
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

transformers.utils.logging.disable_progress_bar()
torch.manual_seed(0)
model = KestrelForCausalLM(KestrelConfig.from_pretrained("."))
model.save_pretrained("checkpoint")
shutil.copy("modeling_kestrel.py", "checkpoint")  # its config.json names it
shutil.copy("config.json", "checkpoint")

alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())  # a token a byte
tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()
tokenizer.save("checkpoint/tokenizer.json")
print(f"checkpoint: {sum(p.numel() for p in model.parameters()):,} parameters")
