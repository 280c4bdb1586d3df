"""Read-only companions of training: plan, doctor, report, diagnose, compare."""
