"""The model language and its compiler: conf YAML -> `ModelSpec` -> `torch.fx` graphs on meta."""
