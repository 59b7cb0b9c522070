"""Statistics of a site's data that may be shared: measured, suppressed, written down."""
