"""The report: what a run has learnt, on one page that needs nothing but itself."""
