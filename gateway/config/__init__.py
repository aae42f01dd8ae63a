"""config.yaml, the environment, and YAML with line numbers."""
