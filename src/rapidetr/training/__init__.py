"""The whole story of a fine-tuning run: recipe, loop, step, schedule, stages, average, stopping, state, processes, records."""
