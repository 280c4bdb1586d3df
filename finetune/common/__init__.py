"""Errors, files, the network and numbers as text: what every module may use."""
