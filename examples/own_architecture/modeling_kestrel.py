"""Kestrel, as its authors would publish it: the reference that the two YAML files must equal."""

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer


class KestrelConfig(LlamaConfig):
    model_type = "kestrel"
    branch_scale: float = 1.0
    logit_cap: float = 30.0


class KestrelLayer(LlamaDecoderLayer):
    """Attention and MLP side by side, behind one norm, and both scaled."""

    def __init__(self, config, layer_idx):
        super().__init__(config, layer_idx)
        del self.post_attention_layernorm
        self.scale = config.branch_scale

    def forward(self, hidden_states, **context):
        h = self.input_layernorm(hidden_states)
        attended, _ = self.self_attn(hidden_states=h, **context)
        return hidden_states + self.scale * (attended + self.mlp(h))


class KestrelForCausalLM(LlamaForCausalLM):
    config_class = KestrelConfig

    def __init__(self, config):
        super().__init__(config)
        layers = (KestrelLayer(config, i) for i in range(config.num_hidden_layers))
        self.model.layers = nn.ModuleList(layers)
        self.post_init()

    def forward(self, input_ids=None, **context):
        output = super().forward(input_ids=input_ids, **context)
        cap = self.config.logit_cap
        output.logits = cap * torch.tanh(output.logits / cap)
        return output
