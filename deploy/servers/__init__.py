"""What broker and store have to be told: topology, permissions, policies, and how they are brought there."""
