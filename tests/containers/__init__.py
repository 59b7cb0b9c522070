"""The images and compose files on a real engine: `make test-containers`. Not part of the other suites."""
