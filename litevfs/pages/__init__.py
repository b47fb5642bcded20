"""A page's bytes, through every tier, and what is read ahead of need."""
