"""Video files → frames, in processes of their own; nothing here imports torch."""
