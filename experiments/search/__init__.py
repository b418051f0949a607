"""Hyper-parameter search as part of a study: proposals are files, and workers train them like every other run."""
