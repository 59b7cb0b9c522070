"""What `fledge doctor` checks, from the local files to the rights at broker and store."""
