"""What lies in a worker's folder beside its database: spool, code, versions, local tensors, incidents."""
