"""The parts of the network: layers, dilated convolutions, encoders, decoders, block tables and --compat's numerics."""
