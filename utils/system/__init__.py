"""The process around the work: command line, errors, output files, and how TensorFlow is started."""
