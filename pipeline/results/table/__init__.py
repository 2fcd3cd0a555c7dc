"""The results in the arrangement of the paper's Table 1: rows, published figures, and a writer per format."""
