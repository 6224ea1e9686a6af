"""The difference of two architectures, from their YAML files alone."""
