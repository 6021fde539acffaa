"""What every model has in its middle: attention that alternates between frames and scene."""
