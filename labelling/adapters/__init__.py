"""The labeller inside annotation tools."""
