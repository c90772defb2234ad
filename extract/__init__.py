"""Stage one: video → frames → features → one shard."""
