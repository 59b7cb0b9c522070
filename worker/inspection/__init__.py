"""Looking at a site from afar: its log, its machine and its own files, without anything private."""
