"""Model files: each module reads one format and writes its heads and tails."""
