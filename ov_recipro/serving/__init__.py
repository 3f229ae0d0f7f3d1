"""A server that predicts and explains, by KServe's protocols."""
