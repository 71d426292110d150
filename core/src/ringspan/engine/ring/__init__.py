"""A ring of processes: its messages, the memory that they travel in, and its failures."""
