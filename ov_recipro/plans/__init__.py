"""Plans: how the tail is run over all cells of a feature map."""
