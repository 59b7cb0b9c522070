"""MONAI's configurations, engines and data lists, as trainers and tools need them."""
