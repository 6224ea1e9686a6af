"""Change a model's weights and publish the result: what transformers loads is what ran here.

    python change.py OUT [CHECKPOINT]

A low-rank update is merged into the MLP of the middle layer, as a merged LoRA adapter would be.
Without a checkpoint: SmolLM2-135M-Instruct, a GGUF file, which becomes a folder of safetensors.
"""

import sys
from pathlib import Path

import torch

import assembler
from assembler.exporting import ExportSettings, export_model
from assembler.loading import assemble, load_weights

out = Path(sys.argv[1])
assembly = assemble(sys.argv[2]) if len(sys.argv) > 2 else assemble(conf="smollm2")
model = load_weights(assembly)

tokens = torch.arange(5, 25)[None]
before = assembler.logits(model, tokens)

generator = torch.Generator().manual_seed(0)
layer = model.layers[len(model.layers) // 2]
weight = layer.mlp.down.weight  # [hidden, intermediate]
a = torch.randn(4, weight.shape[1], generator=generator)
b = torch.randn(weight.shape[0], 4, generator=generator)
with torch.no_grad():
    weight += 0.01 * (b @ a).to(weight.dtype)
after = assembler.logits(model, tokens)

export_model(assembly, [model], ExportSettings(out))

from transformers import AutoModelForCausalLM  # noqa: E402 (the export needs no transformers)

reloaded = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
with torch.inference_mode():
    theirs = reloaded(tokens).logits
spread = after.std()  # logits of std 1 are equal within 3e-5 in float32, deep models a bit more
print(
    f"the change moved logits by up to {(after - before).abs().max() / spread:.2f} of their spread"
)
same = (after - theirs).abs().max() / spread < 1e-4
print(f"transformers has {'the same' if same else 'OTHER'} logits of {out.name}")
