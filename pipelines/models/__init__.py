"""The whole network, and the model folder that holds it."""
