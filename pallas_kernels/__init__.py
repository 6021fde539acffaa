"""Block-sparse attention for JAX in Pallas kernels, usable without VGGT."""
