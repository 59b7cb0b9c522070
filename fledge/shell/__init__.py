"""The interactive shell of `fledge ctl`, with the commands of Clara's console."""
