"""Errors, files, the network and numbers as text: usable by every module."""
