"""Settings from config.yaml and the environment, and a YAML reader with line numbers."""
