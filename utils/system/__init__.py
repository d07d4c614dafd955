"""Everything around the actual work: command line, errors, signals, memory, output files, starting TensorFlow."""
