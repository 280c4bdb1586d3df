"""Text in, batches out: sources -> tokens -> train.bin and val.bin -> Arrow blocks -> batches."""
