"""The commands of the serving room, one module each."""
