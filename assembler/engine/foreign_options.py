"""What other systems call the settings of an engine or a request, and what to use here.

Read where an unknown name is refused. Importing this module does not import torch.
"""

from __future__ import annotations

_NOTHING = "there is nothing like it here, leave it out"

# Names of vLLM, nano-vllm, SGLang, transformers and llama.cpp.
ENGINE = {
    "async_scheduling": "here it is overlap_scheduling",
    "attention_backend": "here it is attention",
    "attn_implementation": "here it is attention",
    "block_size": "here it is page_size",
    "chunked_prefill_size": "here it is max_num_batched_tokens",
    "context_length": "here it is max_model_len",
    "cpu_offload_gb": _NOTHING,
    "device_map": "here it is device",
    "disable_log_stats": "nothing is logged in steps; numbers are in llm.engine.stats",
    "disable_overlap_schedule": "here it is overlap_scheduling=false",
    "distributed_executor_backend": "ranks are processes; leave it out",
    "download_dir": "downloads go to the Hub's cache: set HF_HOME",
    "enable_lora": _NOTHING,
    "hf_overrides": 'here it is overrides, e.g. ["conf.layers.count=2"]',
    "kvcache_block_size": "here it is page_size",
    "load_format": "formats are found out; load=dummy fills random weights",
    "max_running_requests": "here it is max_num_seqs",
    "max_seq_len": "here it is max_model_len",
    "max_seq_len_to_capture": _NOTHING,
    "mem_fraction_static": "here it is gpu_memory_utilization",
    "model_path": "the model is the first argument",
    "n_ctx": "here it is max_model_len",
    "num_gpu_blocks_override": "here it is kv_cache_memory_bytes",
    "num_kvcache_blocks": "here it is kv_cache_memory_bytes",
    "pipeline_parallel_size": "models are split by tensor_parallel_size alone",
    "quantization": "the checkpoint says how it is quantised; leave it out",
    "random_seed": "here it is seed",
    "skip_tokenizer_init": "without tokenizer files prompts are token ids; leave it out",
    "swap_space": "preempted requests are computed again; leave it out",
    "tokenizer": "the tokenizer is the checkpoint's: its files lie in the same folder",
    "tokenizer_mode": "the tokenizer is the checkpoint's; leave it out",
    "torch_dtype": "here it is dtype",
    "tp": "here it is tensor_parallel_size",
    "tp_size": "here it is tensor_parallel_size",
    "trust_remote_code": "no code of a checkpoint is ever run; leave it out",
}

REQUEST = {
    "best_of": "here it is n",
    "detokenize": "text is always made where there is a tokenizer; leave it out",
    "do_sample": "temperature=0 is greedy",
    "eos_token_id": "here it is stop_token_ids",
    "guided_decoding": _NOTHING,
    "logits_processors": _NOTHING,
    "max_length": "here it is max_tokens, without the prompt",
    "max_new_tokens": "here it is max_tokens",
    "min_new_tokens": "here it is min_tokens",
    "num_beams": "there is no beam search, leave it out",
    "num_return_sequences": "here it is n",
    "output_kind": "stream() gives all there is so far, generate() the end",
    "repeat_penalty": "here it is repetition_penalty",
    "stop_sequences": "here it is stop",
    "stop_strings": "here it is stop",
    "structured_outputs": _NOTHING,
    "truncate_prompt_tokens": "cut the prompt's token ids before they are passed",
    "use_beam_search": "there is no beam search, leave it out",
}
