"""Opens weights files of every kind, translates their names, and restores networks from them."""
