"""CPU kernels in numpy and SciPy, float32: they close the predict-measure loop on machines without a GPU."""
