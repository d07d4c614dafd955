"""What the network is made of: layers, dilated convolutions, block tables and the modes of numerics."""
