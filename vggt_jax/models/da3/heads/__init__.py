"""The heads that Depth Anything 3 alone has."""
