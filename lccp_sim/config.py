class ConfigError(ValueError):
    """One line that names the key, the value, the rule and the remedy."""
