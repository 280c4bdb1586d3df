"""What others get: a directory that was verified, and a repository that was compared."""
