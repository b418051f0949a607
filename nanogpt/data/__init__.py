"""Corpora, their files, and the step-indexed stream of batches. Numpy only: nothing here loads torch."""
