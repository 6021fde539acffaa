"""Masks of photographs: which pixels may be used."""

from vggt_jax.images.masks import background_mask, find_masks, load_masks

__all__ = ["background_mask", "find_masks", "load_masks"]
