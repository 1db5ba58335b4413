"""Labelling: what people are asked, what they answer, and how far they agree. It imports the contract."""
