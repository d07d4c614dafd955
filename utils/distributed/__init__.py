"""Several devices and machines: training on towers, clusters of machines, and prediction on all devices."""
