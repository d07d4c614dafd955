"""Training: the run and its folder, the losses, the update of the weights and the records."""
