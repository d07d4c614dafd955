"""The rooms of the project: one idea a module, none of which knows model, network or main."""
