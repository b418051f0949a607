"""Tables in, laws and figures out: knows DataFrames, no file and no study. Importing it loads nothing heavy."""
