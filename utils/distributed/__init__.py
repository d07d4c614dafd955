"""Several devices and machines that share the work of one run."""
