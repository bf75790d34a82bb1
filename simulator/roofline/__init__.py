"""Time of each family of kernels from its traffic and a device: pure numpy, broadcasting."""
