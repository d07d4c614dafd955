"""Several devices and several machines: the split of a batch, the machines of a cluster, images over devices."""
