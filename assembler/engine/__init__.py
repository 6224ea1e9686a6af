"""The engine: continuous batching of requests over paged KV memory.

It runs any module called as `model(input_ids, ctx) -> logits` whose attention blocks name their
cache (`cache_index`, `cache_spec()`); it knows no YAML and no checkpoint.
"""
