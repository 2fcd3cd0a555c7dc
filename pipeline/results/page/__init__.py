"""The page that shows a study's results: tables, curves, accounts, and a browser of what every run retrieves."""
