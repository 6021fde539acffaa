"""`python -m vggt_jax.cli`."""

from vggt_jax.cli import entry

if __name__ == "__main__":
    entry()
