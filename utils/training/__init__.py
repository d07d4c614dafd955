"""What a training run needs: the loop, the loss, the update and the folder that keeps its checkpoints."""
