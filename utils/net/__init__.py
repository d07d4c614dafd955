"""The parts of the network: layers, dilated convolutions, block tables, decoders and the numerics of --compat."""
