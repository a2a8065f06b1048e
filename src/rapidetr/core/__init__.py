"""The nouns: records that every other room passes around. numpy and the standard library only."""
