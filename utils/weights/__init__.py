"""Weights files of every family: opening, naming, choosing and restoring them."""
