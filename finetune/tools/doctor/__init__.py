"""What is wrong with a corpus, and the corpus without it."""
