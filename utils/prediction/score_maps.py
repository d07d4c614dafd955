"""Scores of an image as probabilities and as the arrays of a file, in numpy: what the CRF's processes may import."""

import numpy as np

FLOAT16_MAX = 65504.0


def softmax(logits):
    """Probabilities of logits [..., num_classes], float32 of the same shape."""
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True), dtype=np.float32)
    powers /= powers.sum(axis=-1, keepdims=True)
    return powers


def class_first(scores):
    """[H, W, num_classes] -> float16 [num_classes, H, W]; what float16 cannot hold is clipped to its range."""
    return np.clip(scores, -FLOAT16_MAX, FLOAT16_MAX).astype(np.float16).transpose(2, 0, 1).copy()
