"""Masks of photographs: which pixels may be used. The public names of `images.masks`."""

from vggt_jax.images.masks import background_mask, find_masks, load_masks

__all__ = ["background_mask", "find_masks", "load_masks"]
