"""One batch through a model on a device: lowering, memory, a step, TTFT and TPOT."""
