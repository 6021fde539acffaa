"""MapAnything: a model that takes images and whatever is known of them, and answers in metres."""
