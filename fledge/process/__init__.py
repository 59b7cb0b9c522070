"""What every process of the command line needs: log, signals, memory, terminal."""
