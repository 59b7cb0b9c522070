"""The store in S3: MinIO's client with bounded requests, presigned URLs and the grants behind them."""
