"""Photographs, videos and masks on their way to a model."""
