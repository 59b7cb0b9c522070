"""The slow work on executor threads: admission, merge, production of a version and its records."""
