"""What was found, for people: boxes and masks on pictures."""
