"""What lies on disk between the stages: video manifests, plans, feature shards, errors."""
