"""Several devices and machines: parts of a batch on towers, the machines of a cluster, prediction on all devices."""
