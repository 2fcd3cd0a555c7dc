"""What is made of the metrics: comparisons, tables, curves, the page, and folders to pass on."""
