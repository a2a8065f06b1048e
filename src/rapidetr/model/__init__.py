"""The network, pure torch: no paths, no downloads, no losses, no exporting flag."""
