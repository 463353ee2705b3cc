"""What a caller may ask, in domain words, shared by both APIs."""
