"""A hospital's own data: made ready for training, and described in figures; nothing here uses the network."""
