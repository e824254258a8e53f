"""Checks of a part's surroundings for `tachikoma doctor`: each yields findings with their remedies."""
