"""Data sets for evaluation: from the files of each to the same records. A file is one data set."""
