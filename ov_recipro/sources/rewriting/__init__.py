"""Rewriting a model: its shapes and batch, and 8 or 16 bits to float32."""
