"""Where a model can be cut, and what a cut is."""
