"""Prediction: the class map of an image, its refinement by a CRF, the files written from it, metrics and export."""
