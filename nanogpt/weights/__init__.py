"""Weights of other makers and of our own runs: found, read into our models, and written as transformers has them."""
