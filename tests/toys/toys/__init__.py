"""A package with the modules of the toy method."""
