"""Numbers that can be trusted: the very `predict` that users call, measured with evidence of the conditions."""
