"""One model over several machines: stages of its layers on the nodes of a Ray cluster."""
