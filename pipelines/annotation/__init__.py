"""Manifests and segment files from other programs' annotations."""
