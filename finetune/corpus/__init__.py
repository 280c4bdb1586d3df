"""A corpus prepared by many processes or machines: a pipeline of datatrove around our reader, tokenizer and writer."""
