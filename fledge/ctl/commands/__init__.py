"""Commands of `fledge ctl`, one file for each group."""
