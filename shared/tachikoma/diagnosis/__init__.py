"""Checks of a part's surroundings for `tachikoma doctor`: each yields findings, with what to do about them."""
