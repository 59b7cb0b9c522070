"""Tools around MONAI bundles: check before training, inference."""
