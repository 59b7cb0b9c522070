"""`fledge ctl`: the operator's command line and console, over the broker alone."""
