"""Files on disk between the stages: video manifests, plans, feature shards; and the errors."""
