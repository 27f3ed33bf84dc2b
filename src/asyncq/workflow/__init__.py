"""Workflows as values: chains, groups, chords and what they are made of. Nothing here does any I/O."""
