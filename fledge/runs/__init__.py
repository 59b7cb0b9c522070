"""Making runs and moving them: folders, archives, bundles, uploads, downloads, the zoo."""
