"""What a run left, judged and shown: diagnosis, report and comparison. Reads files only; torch is not needed."""
