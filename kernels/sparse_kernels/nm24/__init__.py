"""2:4 weights through torch's own library path (cuSPARSELt or CUTLASS): a baseline, so no Triton kernel of ours.

The library packs metadata in an order of its own and multiplies on sparse tensor cores, which Triton cannot reach.
"""
